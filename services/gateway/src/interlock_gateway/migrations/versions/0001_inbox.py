"""The inbox and its lanes, waiting questions, runs, and edge's browser state.

Edge may put events in and never sees one again; the worker takes them out. The
functions are the only way in for edge, so its role needs no table at all but
the OAuth states it wrote itself.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
-- Rises over every lane's life, so that a lane that was emptied and made anew
-- never gives out a fence an old holder still has.
CREATE SEQUENCE gateway.fence AS bigint;

CREATE TABLE gateway.inbox_event (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_key    text NOT NULL UNIQUE CHECK (length(event_key) BETWEEN 1 AND 512),
    second_key   text NOT NULL DEFAULT '',
    kind         text NOT NULL CHECK (kind IN ('event', 'interaction', 'command')),
    lane         text NOT NULL,
    team         text NOT NULL,
    body         bytea NOT NULL,
    grant_token  text NOT NULL,
    event_at     timestamptz NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT now(),
    state        text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'done', 'dead')),
    attempts     integer NOT NULL DEFAULT 0,
    not_before   timestamptz NOT NULL DEFAULT now(),
    reason       text NOT NULL DEFAULT '',
    ended_at     timestamptz,
    -- What a question that waited brings along when it comes back.
    cause        text NOT NULL DEFAULT 'slack'
                 CHECK (cause IN ('slack', 'picked', 'linked', 'greeted')),
    resume_grant text NOT NULL DEFAULT '',
    project_id   text NOT NULL DEFAULT '',
    agent_id     text NOT NULL DEFAULT '',
    agent_name   text NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX inbox_event_second_key ON gateway.inbox_event (second_key)
    WHERE second_key <> '';
CREATE INDEX inbox_event_head ON gateway.inbox_event (lane, id) WHERE state = 'ready';
CREATE INDEX inbox_event_ended ON gateway.inbox_event (ended_at) WHERE state <> 'ready';
CREATE INDEX inbox_event_dead ON gateway.inbox_event (team, id) WHERE state = 'dead';

CREATE TABLE gateway.lane (
    lane        text PRIMARY KEY,
    team        text NOT NULL,
    control     boolean NOT NULL,
    ready_at    timestamptz NOT NULL DEFAULT now(),
    owner       text NOT NULL DEFAULT '',
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    fence       bigint NOT NULL DEFAULT 0
);

CREATE TABLE gateway.resume_intent (
    event_key     text PRIMARY KEY,
    awaits        text NOT NULL CHECK (awaits IN ('link', 'agent')),
    slack_user    text NOT NULL,
    kind          text NOT NULL,
    lane          text NOT NULL,
    team          text NOT NULL,
    body          bytea NOT NULL,
    grant_token   text NOT NULL,
    event_at      timestamptz NOT NULL,
    choices       jsonb NOT NULL DEFAULT '[]',
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL,
    next_check_at timestamptz NOT NULL DEFAULT now() + interval '30 seconds'
);
-- Whoever asks again before linking wants the newer question answered.
CREATE UNIQUE INDEX resume_intent_one_per_user ON gateway.resume_intent (team, slack_user)
    WHERE awaits = 'link';
CREATE INDEX resume_intent_expiry ON gateway.resume_intent (expires_at);

CREATE TABLE gateway.run (
    event_key  text PRIMARY KEY,
    message_id text NOT NULL,
    channel    text NOT NULL,
    thread_ts  text NOT NULL,
    state      text NOT NULL DEFAULT 'started' CHECK (state IN ('started', 'ended')),
    outcome    text NOT NULL DEFAULT '',
    messages   text[] NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz
);
CREATE INDEX run_started_at ON gateway.run (started_at);

CREATE TABLE gateway.oauth_state (
    state_sha256   text PRIMARY KEY,
    browser_sha256 text NOT NULL,
    session_ref    text NOT NULL,
    grant_token    text NOT NULL,
    redirect_to    text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL
);
CREATE INDEX oauth_state_expiry ON gateway.oauth_state (expires_at);

CREATE TABLE gateway.browser_attempt (
    key        text PRIMARY KEY,
    attempts   integer NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX browser_attempt_expiry ON gateway.browser_attempt (expires_at);
"""

EDGE_FUNCTIONS = """
-- Store an event once, at the end of its lane. 'stored' or 'duplicate'.
--
-- The lane is locked before the event gets its id, so ids rise in the order in
-- which a lane's events became visible. Control events have a lane of their own
-- beside the thread's, where they never wait behind the run they must end.
CREATE FUNCTION gateway.inbox_put(
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

-- Count an attempt and return how many there were in the window, this one included.
CREATE FUNCTION gateway.count_attempt(p_key text, p_window interval) RETURNS integer
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO gateway.browser_attempt AS a (key, attempts, expires_at)
    VALUES (p_key, 1, now() + p_window)
    ON CONFLICT (key) DO UPDATE SET
        attempts = CASE WHEN a.expires_at <= now() THEN 1 ELSE a.attempts + 1 END,
        expires_at = CASE WHEN a.expires_at <= now() THEN now() + p_window ELSE a.expires_at END
    RETURNING attempts
$$;
"""

WORKER_FUNCTIONS = """
-- Take due lanes: control lanes first, then of the least busy team, none beyond its cap.
--
-- One claim at a time (the advisory lock), so that two workers neither choose
-- the same lanes nor overstep a cap together. A lease that ran out is taken only
-- once Postgres has been up for a whole lease: while it was down, nobody could renew.
CREATE FUNCTION gateway.lane_claim(
    p_owner text, p_slots integer, p_control_slots integer, p_team_cap integer, p_lease interval
) RETURNS TABLE (lane text, fence bigint, team text, control boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('gateway.lane_claim', 0));
    RETURN QUERY
    WITH busy AS (
        SELECT b.team, count(*) AS lanes FROM gateway.lane b
        WHERE b.lease_until > now() AND NOT b.control GROUP BY b.team
    ), due AS (
        SELECT d.lane, d.control, d.ready_at,
               coalesce(busy.lanes, 0) + row_number()
                   OVER (PARTITION BY d.control, d.team ORDER BY d.ready_at, d.lane) AS turn
        FROM gateway.lane d LEFT JOIN busy ON busy.team = d.team
        WHERE d.ready_at <= now() AND d.lease_until <= now()
          AND (d.owner = '' OR pg_postmaster_start_time() + p_lease <= now())
    ), chosen AS (
        (SELECT c.lane FROM due c WHERE c.control ORDER BY c.ready_at LIMIT p_control_slots)
        UNION ALL
        (SELECT c.lane FROM due c WHERE NOT c.control AND c.turn <= p_team_cap
         ORDER BY c.turn, c.ready_at LIMIT p_slots)
    ), free AS (
        SELECT f.lane FROM gateway.lane f JOIN chosen USING (lane)
        WHERE f.ready_at <= now() AND f.lease_until <= now()
        FOR UPDATE OF f SKIP LOCKED
    )
    UPDATE gateway.lane l
    SET owner = p_owner, lease_until = now() + p_lease, fence = nextval('gateway.fence')
    FROM free WHERE l.lane = free.lane
    RETURNING l.lane, l.fence, l.team, l.control;
END $$;

-- Renew leases; returns those still held.
CREATE FUNCTION gateway.lane_beat(p_lanes text[], p_fences bigint[], p_lease interval)
RETURNS TABLE (lane text, fence bigint)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE gateway.lane l SET lease_until = now() + p_lease
    FROM unnest(p_lanes, p_fences) AS held (lane, fence)
    WHERE l.lane = held.lane AND l.fence = held.fence AND l.owner <> ''
    RETURNING l.lane, l.fence
$$;

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

-- Move a waiting question back into its lane. 'stored', 'duplicate' or 'absent'.
--
-- The intent goes and the event comes in one transaction: a question that
-- waited comes back once, whoever asks and how often.
CREATE FUNCTION gateway.inbox_resume(
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

-- Put a given-up event back at the end of its lane. False when it is not dead
-- or its body is erased.
CREATE FUNCTION gateway.inbox_replay(p_event_id bigint, p_team text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_lane text;
BEGIN
    SELECT e.lane INTO v_lane FROM gateway.inbox_event e
    WHERE e.id = p_event_id AND e.state = 'dead' AND e.body <> ''
      AND (p_team = '' OR e.team = p_team);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO gateway.lane AS l (lane, team, control)
    SELECT e.lane, e.team, starts_with(e.lane, 'control:') FROM gateway.inbox_event e
    WHERE e.id = p_event_id
    ON CONFLICT (lane) DO UPDATE SET team = l.team;
    UPDATE gateway.inbox_event e
    SET state = 'ready', attempts = 0, not_before = now(), reason = '', ended_at = NULL
    WHERE e.id = p_event_id AND e.state = 'dead' AND e.body <> '';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('gateway_inbox', '');
    RETURN true;
END $$;
"""

RIGHTS = """
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA gateway FROM PUBLIC;
GRANT USAGE ON SCHEMA gateway TO interlock_gateway_edge, interlock_gateway_worker;

GRANT EXECUTE ON FUNCTION gateway.inbox_put, gateway.count_attempt TO interlock_gateway_edge;
GRANT SELECT, INSERT, DELETE ON gateway.oauth_state TO interlock_gateway_edge;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA gateway TO interlock_gateway_worker;
REVOKE EXECUTE ON FUNCTION gateway.count_attempt FROM interlock_gateway_worker;
GRANT USAGE ON SEQUENCE gateway.fence TO interlock_gateway_worker;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON gateway.inbox_event, gateway.lane, gateway.resume_intent, gateway.run
    TO interlock_gateway_worker;
-- Only to sweep what has expired.
GRANT SELECT (expires_at), DELETE ON gateway.oauth_state, gateway.browser_attempt
    TO interlock_gateway_worker;
"""


def upgrade() -> None:
    for script in (TABLES, EDGE_FUNCTIONS, WORKER_FUNCTIONS, RIGHTS):
        op.execute(script)


def downgrade() -> None:
    op.execute(
        """
        DROP FUNCTION gateway.inbox_replay, gateway.inbox_resume, gateway.lane_step,
            gateway.lane_beat, gateway.lane_claim, gateway.count_attempt, gateway.inbox_put;
        DROP TABLE gateway.browser_attempt, gateway.oauth_state, gateway.run,
            gateway.resume_intent, gateway.lane, gateway.inbox_event;
        DROP SEQUENCE gateway.fence;
        """
    )
