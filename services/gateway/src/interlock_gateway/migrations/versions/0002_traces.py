"""The trace and the request id of an event, from edge to the worker.

An edge of before puts events without them, by the function that it knows; a
worker of before takes them by name, and does not see them.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = """
ALTER TABLE gateway.inbox_event
    ADD COLUMN trace_parent text NOT NULL DEFAULT '' CHECK (length(trace_parent) <= 64),
    ADD COLUMN request_id text NOT NULL DEFAULT '' CHECK (length(request_id) <= 64);
-- A question that waited is answered under the id it was asked with.
ALTER TABLE gateway.resume_intent
    ADD COLUMN trace_parent text NOT NULL DEFAULT '',
    ADD COLUMN request_id text NOT NULL DEFAULT '';
"""

_PUT = """
-- Store an event once, at the end of its lane. 'stored' or 'duplicate'.
--
-- The lane is locked before the event gets its id, so ids rise in the order in
-- which a lane's events became visible. Control events have a lane of their own
-- beside the thread's, where they never wait behind the run they must end.
CREATE FUNCTION gateway.inbox_put(
    p_event_key text, p_second_key text, p_kind text, p_lane text, p_team text,
    p_control boolean, p_body bytea, p_grant text, p_event_at timestamptz,
    p_trace_parent text, p_request_id text
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_lane text := CASE WHEN p_control THEN 'control:' || p_lane ELSE p_lane END;
    v_second_key text := coalesce(p_second_key, '');
BEGIN
    IF EXISTS (SELECT FROM gateway.inbox_event e WHERE e.event_key = p_event_key)
        OR EXISTS (SELECT FROM gateway.inbox_event e
                   WHERE e.second_key = v_second_key AND e.second_key <> '')
    THEN
        RETURN 'duplicate';
    END IF;
    INSERT INTO gateway.lane AS l (lane, team, control) VALUES (v_lane, p_team, p_control)
    ON CONFLICT (lane) DO UPDATE SET team = l.team;
    INSERT INTO gateway.inbox_event
        (event_key, second_key, kind, lane, team, body, grant_token, event_at,
         trace_parent, request_id)
    VALUES
        (p_event_key, v_second_key, p_kind, v_lane, p_team, p_body, p_grant, p_event_at,
         p_trace_parent, p_request_id)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        -- Lost a race; an empty lane left here is removed by whoever takes it.
        RETURN 'duplicate';
    END IF;
    PERFORM pg_notify('gateway_inbox', '');
    RETURN 'stored';
END $$;

-- As edges of before call it.
CREATE OR REPLACE FUNCTION gateway.inbox_put(
    p_event_key text, p_second_key text, p_kind text, p_lane text, p_team text,
    p_control boolean, p_body bytea, p_grant text, p_event_at timestamptz
) RETURNS text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT gateway.inbox_put(p_event_key, p_second_key, p_kind, p_lane, p_team, p_control,
        p_body, p_grant, p_event_at, '', '')
$$;
"""

# Another result needs another function; nobody calls it between drop and commit.
_STEP = """
DROP FUNCTION gateway.lane_step;
-- Settle the event in hand and hand out the next one of a lane.
--
-- status: 'event' with the event; 'empty' (the lane is gone); 'released' (its
-- head is not due, or p_keep is false); 'lost' (somebody else holds the lane;
-- nothing was written). Handing out counts as an attempt, so a crash counts too.
CREATE FUNCTION gateway.lane_step(
    p_lane text, p_fence bigint, p_event_id bigint, p_outcome text, p_reason text,
    p_delay interval, p_max_attempts integer, p_lease interval, p_keep boolean
) RETURNS TABLE (
    status text, id bigint, event_key text, kind text, team text, body bytea, grant_token text,
    event_at timestamptz, attempts integer, cause text, resume_grant text, project_id text,
    agent_id text, agent_name text, trace_parent text, request_id text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    e gateway.inbox_event%ROWTYPE;
BEGIN
    PERFORM FROM gateway.lane l
    WHERE l.lane = p_lane AND l.fence = p_fence AND l.owner <> '' FOR UPDATE;
    IF NOT FOUND THEN
        status := 'lost';
        RETURN NEXT;
        RETURN;
    END IF;
    UPDATE gateway.inbox_event s SET
        state = CASE WHEN p_outcome = 'done' THEN 'done'
                     WHEN p_outcome = 'dead' THEN 'dead'
                     WHEN p_outcome = 'retry' AND s.attempts >= p_max_attempts THEN 'dead'
                     ELSE 'ready' END,
        attempts = s.attempts - CASE WHEN p_outcome = 'untouched' THEN 1 ELSE 0 END,
        not_before = CASE WHEN p_outcome = 'retry' THEN now() + p_delay ELSE s.not_before END,
        reason = p_reason,
        ended_at = CASE WHEN p_outcome IN ('done', 'dead')
                          OR p_outcome = 'retry' AND s.attempts >= p_max_attempts
                        THEN now() END,
        body = CASE WHEN p_outcome = 'done' THEN '' ELSE s.body END,
        grant_token = CASE WHEN p_outcome = 'done' THEN '' ELSE s.grant_token END,
        resume_grant = CASE WHEN p_outcome = 'done' THEN '' ELSE s.resume_grant END
    WHERE s.id = p_event_id AND s.lane = p_lane AND s.state = 'ready' AND p_outcome <> '';
    -- Its farewell was handed out and crashed as well.
    UPDATE gateway.inbox_event g SET state = 'dead', reason = 'GAVE_UP', ended_at = now()
    WHERE g.lane = p_lane AND g.state = 'ready' AND g.attempts > p_max_attempts;
    SELECT * INTO e FROM gateway.inbox_event h
    WHERE h.lane = p_lane AND h.state = 'ready' ORDER BY h.id LIMIT 1;
    IF NOT FOUND THEN
        DELETE FROM gateway.lane l WHERE l.lane = p_lane;
        status := 'empty';
        RETURN NEXT;
        RETURN;
    END IF;
    IF e.not_before > now() OR NOT p_keep THEN
        UPDATE gateway.lane l
        SET owner = '', lease_until = '-infinity', ready_at = greatest(e.not_before, now())
        WHERE l.lane = p_lane;
        status := 'released';
        RETURN NEXT;
        RETURN;
    END IF;
    UPDATE gateway.inbox_event h SET attempts = h.attempts + 1 WHERE h.id = e.id;
    UPDATE gateway.lane l SET lease_until = now() + p_lease WHERE l.lane = p_lane;
    RETURN QUERY SELECT 'event', e.id, e.event_key, e.kind, e.team, e.body, e.grant_token,
        e.event_at, e.attempts + 1, e.cause, e.resume_grant, e.project_id, e.agent_id,
        e.agent_name, e.trace_parent, e.request_id;
END $$;
"""

_RESUME = """
-- Move a waiting question back into its lane. 'stored', 'duplicate' or 'absent'.
--
-- The intent goes and the event comes in one transaction: a question that
-- waited comes back once, whoever asks and how often.
CREATE OR REPLACE FUNCTION gateway.inbox_resume(
    p_event_key text, p_cause text, p_resume_grant text,
    p_project_id text, p_agent_id text, p_agent_name text
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w gateway.resume_intent%ROWTYPE;
    v_key text;
    v_put text;
BEGIN
    DELETE FROM gateway.resume_intent r WHERE r.event_key = p_event_key RETURNING * INTO w;
    IF NOT FOUND THEN
        RETURN 'absent';
    END IF;
    v_key := p_cause || ':' || w.event_key;
    v_put := gateway.inbox_put(
        v_key, '', w.kind, w.lane, w.team, false, w.body, w.grant_token, w.event_at,
        w.trace_parent, w.request_id
    );
    IF v_put = 'stored' THEN
        UPDATE gateway.inbox_event e
        SET cause = p_cause, resume_grant = p_resume_grant, project_id = p_project_id,
            agent_id = p_agent_id, agent_name = p_agent_name
        WHERE e.event_key = v_key;
    END IF;
    RETURN v_put;
END $$;
"""

_RIGHTS = """
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA gateway FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gateway.inbox_put(
    text, text, text, text, text, boolean, bytea, text, timestamptz, text, text
) TO interlock_gateway_edge, interlock_gateway_worker;
GRANT EXECUTE ON FUNCTION gateway.lane_step TO interlock_gateway_worker;
"""

_PUT_BEFORE = """
-- Store an event once, at the end of its lane. 'stored' or 'duplicate'.
--
-- The lane is locked before the event gets its id, so ids rise in the order in
-- which a lane's events became visible. Control events have a lane of their own
-- beside the thread's, where they never wait behind the run they must end.
CREATE OR REPLACE FUNCTION gateway.inbox_put(
    p_event_key text, p_second_key text, p_kind text, p_lane text, p_team text,
    p_control boolean, p_body bytea, p_grant text, p_event_at timestamptz
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_lane text := CASE WHEN p_control THEN 'control:' || p_lane ELSE p_lane END;
    v_second_key text := coalesce(p_second_key, '');
BEGIN
    IF EXISTS (SELECT FROM gateway.inbox_event e WHERE e.event_key = p_event_key)
        OR EXISTS (SELECT FROM gateway.inbox_event e
                   WHERE e.second_key = v_second_key AND e.second_key <> '')
    THEN
        RETURN 'duplicate';
    END IF;
    INSERT INTO gateway.lane AS l (lane, team, control) VALUES (v_lane, p_team, p_control)
    ON CONFLICT (lane) DO UPDATE SET team = l.team;
    INSERT INTO gateway.inbox_event
        (event_key, second_key, kind, lane, team, body, grant_token, event_at)
    VALUES
        (p_event_key, v_second_key, p_kind, v_lane, p_team, p_body, p_grant, p_event_at)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        -- Lost a race; an empty lane left here is removed by whoever takes it.
        RETURN 'duplicate';
    END IF;
    PERFORM pg_notify('gateway_inbox', '');
    RETURN 'stored';
END $$;
"""

_STEP_BEFORE = """
DROP FUNCTION gateway.lane_step;
-- Settle the event in hand and hand out the next one of a lane.
--
-- status: 'event' with the event; 'empty' (the lane is gone); 'released' (its
-- head is not due, or p_keep is false); 'lost' (somebody else holds the lane;
-- nothing was written). Handing out counts as an attempt, so a crash counts too.
CREATE FUNCTION gateway.lane_step(
    p_lane text, p_fence bigint, p_event_id bigint, p_outcome text, p_reason text,
    p_delay interval, p_max_attempts integer, p_lease interval, p_keep boolean
) RETURNS TABLE (
    status text, id bigint, event_key text, kind text, team text, body bytea, grant_token text,
    event_at timestamptz, attempts integer, cause text, resume_grant text, project_id text,
    agent_id text, agent_name text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    e gateway.inbox_event%ROWTYPE;
BEGIN
    PERFORM FROM gateway.lane l
    WHERE l.lane = p_lane AND l.fence = p_fence AND l.owner <> '' FOR UPDATE;
    IF NOT FOUND THEN
        status := 'lost';
        RETURN NEXT;
        RETURN;
    END IF;
    UPDATE gateway.inbox_event s SET
        state = CASE WHEN p_outcome = 'done' THEN 'done'
                     WHEN p_outcome = 'dead' THEN 'dead'
                     WHEN p_outcome = 'retry' AND s.attempts >= p_max_attempts THEN 'dead'
                     ELSE 'ready' END,
        attempts = s.attempts - CASE WHEN p_outcome = 'untouched' THEN 1 ELSE 0 END,
        not_before = CASE WHEN p_outcome = 'retry' THEN now() + p_delay ELSE s.not_before END,
        reason = p_reason,
        ended_at = CASE WHEN p_outcome IN ('done', 'dead')
                          OR p_outcome = 'retry' AND s.attempts >= p_max_attempts
                        THEN now() END,
        body = CASE WHEN p_outcome = 'done' THEN '' ELSE s.body END,
        grant_token = CASE WHEN p_outcome = 'done' THEN '' ELSE s.grant_token END,
        resume_grant = CASE WHEN p_outcome = 'done' THEN '' ELSE s.resume_grant END
    WHERE s.id = p_event_id AND s.lane = p_lane AND s.state = 'ready' AND p_outcome <> '';
    -- Its farewell was handed out and crashed as well.
    UPDATE gateway.inbox_event g SET state = 'dead', reason = 'GAVE_UP', ended_at = now()
    WHERE g.lane = p_lane AND g.state = 'ready' AND g.attempts > p_max_attempts;
    SELECT * INTO e FROM gateway.inbox_event h
    WHERE h.lane = p_lane AND h.state = 'ready' ORDER BY h.id LIMIT 1;
    IF NOT FOUND THEN
        DELETE FROM gateway.lane l WHERE l.lane = p_lane;
        status := 'empty';
        RETURN NEXT;
        RETURN;
    END IF;
    IF e.not_before > now() OR NOT p_keep THEN
        UPDATE gateway.lane l
        SET owner = '', lease_until = '-infinity', ready_at = greatest(e.not_before, now())
        WHERE l.lane = p_lane;
        status := 'released';
        RETURN NEXT;
        RETURN;
    END IF;
    UPDATE gateway.inbox_event h SET attempts = h.attempts + 1 WHERE h.id = e.id;
    UPDATE gateway.lane l SET lease_until = now() + p_lease WHERE l.lane = p_lane;
    RETURN QUERY SELECT 'event', e.id, e.event_key, e.kind, e.team, e.body, e.grant_token,
        e.event_at, e.attempts + 1, e.cause, e.resume_grant, e.project_id, e.agent_id,
        e.agent_name;
END $$;

REVOKE ALL ON FUNCTION gateway.lane_step FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gateway.lane_step TO interlock_gateway_worker;
"""

_RESUME_BEFORE = """
-- Move a waiting question back into its lane. 'stored', 'duplicate' or 'absent'.
--
-- The intent goes and the event comes in one transaction: a question that
-- waited comes back once, whoever asks and how often.
CREATE OR REPLACE FUNCTION gateway.inbox_resume(
    p_event_key text, p_cause text, p_resume_grant text,
    p_project_id text, p_agent_id text, p_agent_name text
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w gateway.resume_intent%ROWTYPE;
    v_key text;
    v_put text;
BEGIN
    DELETE FROM gateway.resume_intent r WHERE r.event_key = p_event_key RETURNING * INTO w;
    IF NOT FOUND THEN
        RETURN 'absent';
    END IF;
    v_key := p_cause || ':' || w.event_key;
    v_put := gateway.inbox_put(
        v_key, '', w.kind, w.lane, w.team, false, w.body, w.grant_token, w.event_at
    );
    IF v_put = 'stored' THEN
        UPDATE gateway.inbox_event e
        SET cause = p_cause, resume_grant = p_resume_grant, project_id = p_project_id,
            agent_id = p_agent_id, agent_name = p_agent_name
        WHERE e.event_key = v_key;
    END IF;
    RETURN v_put;
END $$;
"""

_DROPS = """
DROP FUNCTION gateway.inbox_put(
    text, text, text, text, text, boolean, bytea, text, timestamptz, text, text
);
ALTER TABLE gateway.inbox_event DROP COLUMN trace_parent, DROP COLUMN request_id;
ALTER TABLE gateway.resume_intent DROP COLUMN trace_parent, DROP COLUMN request_id;
"""


def upgrade() -> None:
    for script in (_COLUMNS, _PUT, _STEP, _RESUME, _RIGHTS):
        op.execute(script)


def downgrade() -> None:
    for script in (_PUT_BEFORE, _STEP_BEFORE, _RESUME_BEFORE, _DROPS):
        op.execute(script)
