// What the peer can answer. The streams recorded in tests/fixtures are of these very scenarios.

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Return, by name, functions that make a function that writes the answer into a response. Made
// anew for each request, because a model counts its steps.
export function makeScenarios(ai, test, z) {
  const { createUIMessageStream, pipeUIMessageStreamToResponse, streamText } = ai;
  // The names that differ between the major versions.
  const Model = test.MockLanguageModelV4 ?? test.MockLanguageModelV3;
  const stopWhen = (ai.stepCountIs ?? ai.isStepCount)(5);
  const png = test.MockLanguageModelV4 ? { type: 'data', data: 'iVBORw0KGgo=' } : 'iVBORw0KGgo=';

  // Parts of a model's answer.
  const usage = {
    inputTokens: { total: 3, noCache: 3, cacheRead: 0, cacheWrite: 0 },
    outputTokens: { total: 7, text: 7, reasoning: 0 },
  };
  const finish = (unified = 'stop') => ({
    type: 'finish', finishReason: { unified, raw: unified }, usage,
  });
  const text = (id, ...deltas) => [
    { type: 'text-start', id },
    ...deltas.map((delta) => ({ type: 'text-delta', id, delta })),
    { type: 'text-end', id },
  ];
  const call = (toolName, input, id = 'call_1') => {
    const json = typeof input === 'string' ? input : JSON.stringify(input);
    return [
      { type: 'tool-input-start', id, toolName },
      { type: 'tool-input-delta', id, delta: json.slice(0, 8) },
      { type: 'tool-input-delta', id, delta: json.slice(8) },
      { type: 'tool-input-end', id },
      { type: 'tool-call', toolCallId: id, toolName, input: json },
    ];
  };

  // A model that plays one list of parts for each step.
  const model = (...steps) => {
    let step = 0;
    const next = () => [
      { type: 'stream-start', warnings: [] },
      ...steps[Math.min(step++, steps.length - 1)],
    ];
    const pace = { initialDelayInMs: 0, chunkDelayInMs: 0 };
    return new Model({
      doStream: async () => ({ stream: test.simulateReadableStream({ chunks: next(), ...pace }) }),
    });
  };
  // A model that calls a tool and then says something.
  const calling = (calls, ...deltas) =>
    model([...calls, finish('tool-calls')], [...text('t2', ...deltas), finish()]);

  const fail = (words) => async () => {
    throw new Error(words);
  };
  const tools = {
    weather: ai.tool({
      description: 'w',
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => ({ city, degrees: 21 }),
    }),
    broken: ai.tool({
      description: 'b',
      inputSchema: z.object({}),
      execute: fail('secret-detail-in-tool-error'),
    }),
    gated: ai.tool({
      description: 'g',
      inputSchema: z.object({ amount: z.number() }),
      needsApproval: true,
      execute: async () => 'done',
    }),
    dyn: ai.dynamicTool({
      description: 'd',
      inputSchema: z.object({ q: z.string() }),
      execute: async () => ({ hits: 2 }),
    }),
  };

  // An answer made by a model, end to end.
  const run = (answering, extra = {}, shown = {}) => (response) => {
    const settings = { prompt: 'hi', tools, stopWhen, maxRetries: 0, onError: () => {} };
    streamText({ model: answering, ...settings, ...extra }).pipeUIMessageStreamToResponse(
      response, { sendReasoning: true, sendSources: true, ...shown },
    );
  };
  // An answer written chunk by chunk, as the agents platform writes it.
  const write = (execute, options = {}, sending = {}) => (response) =>
    pipeUIMessageStreamToResponse({
      response,
      stream: createUIMessageStream({
        execute: ({ writer }) =>
          execute((...chunks) => chunks.forEach((chunk) => writer.write(chunk)), response),
        ...options,
      }),
      ...sending,
    });
  // An answer before any stream.
  const refuse = (status, body, headers = {}) => (response) =>
    response
      .writeHead(status, { 'content-type': 'application/json', ...headers })
      .end(JSON.stringify(body));
  const problem = (status, title, detail, code) =>
    refuse(status, { title, status, detail, code, error: { code, message: detail } });

  return {
    // By a model.
    text: () => run(model([...text('t1', 'Hello', ', ', 'world', '!'), finish()])),
    unicode: () => run(model([
      ...text('t1', 'Grüße 👋🏽 ', '日本語\n', '"quoted" \\ \u2028 &<>', 'x'.repeat(5000)),
      finish(),
    ])),
    tool: () => run(calling(call('weather', { city: 'Zürich' }), 'It is ', '21°')),
    'tool-error': () => run(calling(call('broken', {}), 'sorry')),
    'tool-input-error': () => run(calling(call('weather', '{"city": 5}'), 'sorry')),
    'unknown-tool': () => run(calling(call('nonesuch', {}), 'sorry')),
    approval: () => run(model([...call('gated', { amount: 5 }), finish('tool-calls')])),
    dynamic: () => run(calling(call('dyn', { q: 'x' }), 'ok')),
    reasoning: () => run(model([
      { type: 'reasoning-start', id: 'r1' },
      { type: 'reasoning-delta', id: 'r1', delta: 'thinking' },
      { type: 'reasoning-end', id: 'r1' },
      ...text('t1', 'done'),
      finish(),
    ])),
    sources: () => run(model([
      { type: 'source', sourceType: 'url', id: 's1', url: 'https://example.com/a', title: 'A' },
      {
        type: 'source', sourceType: 'document', id: 's2',
        mediaType: 'application/pdf', title: 'B', filename: 'b.pdf',
      },
      { type: 'file', mediaType: 'image/png', data: png },
      ...text('t1', 'see'),
      finish(),
    ])),
    metadata: () => run(model([...text('t1', 'm'), finish()]), {}, {
      messageMetadata: ({ part }) =>
        ({ start: { model: 'mock' }, finish: { total: 10 } })[part.type],
    }),
    length: () => run(model([...text('t1', 'cut'), finish('length')])),
    'model-error': () => run(model([
      ...text('t1', 'partial').slice(0, 2),
      { type: 'error', error: new Error('secret-detail-in-model-error') },
    ])),
    'model-error-shown': () => run(
      model([{ type: 'error', error: new Error('overloaded') }]),
      {},
      { onError: (error) => `Model error: ${error?.message ?? error}` },
    ),
    'model-throws': () => run(new Model({ doStream: fail('secret-detail-in-throw') })),
    abort: () => (response) => {
      const aborting = new AbortController();
      const parts = [{ type: 'stream-start', warnings: [] }, ...text('t1', 'partial').slice(0, 2)];
      const start = async (controller) => {
        parts.forEach((part) => controller.enqueue(part));
        await sleep(50);
        aborting.abort();
        await sleep(20);
        controller.error(new DOMException('aborted', 'AbortError'));
      };
      const cut = new Model({ doStream: async () => ({ stream: new ReadableStream({ start }) }) });
      streamText({
        model: cut, prompt: 'hi', abortSignal: aborting.signal, maxRetries: 0, onError: () => {},
      }).pipeUIMessageStreamToResponse(response);
    },

    // Chunk by chunk.
    data: () => write((say) => say(
      { type: 'start', messageId: 'msg_1' },
      {
        type: 'data-operation',
        data: { type: 'agent_initializing', label: 'Agent initializing' },
      },
      { type: 'data-summary', id: 'sum-1', data: { label: 'Looking', details: {} } },
      ...text('1700000000000-abc', 'Here ', 'you ', 'go.'),
      {
        type: 'data-component', id: '1700000000000-abc-0', data: { type: 'card', title: 'T' },
      },
      { type: 'data-artifact', data: { artifactId: 'a1' } },
      { type: 'data-progress', data: { pct: 50 }, transient: true },
      { type: 'finish' },
    )),
    'no-finish': () => write((say) =>
      say({ type: 'start', messageId: 'msg_2' }, ...text('t', 'end without finish'))),
    interleaved: () => write((say) => say(
      { type: 'start' },
      { type: 'text-start', id: 'a' },
      { type: 'text-start', id: 'b' },
      { type: 'text-delta', id: 'a', delta: 'A1' },
      { type: 'text-delta', id: 'b', delta: 'B1' },
      { type: 'text-delta', id: 'a', delta: 'A2' },
      { type: 'text-end', id: 'a' },
      { type: 'text-end', id: 'b' },
      { type: 'finish', finishReason: 'stop' },
    )),
    unknown: () => write((say) => say(
      { type: 'start' },
      { type: 'brand-new-chunk', x: 1 },
      ...text('t', 'still here'),
      { type: 'finish' },
    )),
    empty: () => write(() => {}),
    'execute-throws': () => write(async (say) => {
      say({ type: 'start', messageId: 'm' });
      throw new Error('secret-detail-in-execute');
    }),
    'execute-throws-shown': () => write(fail('quota'), { onError: (error) => error.message }),
    // An error of the agents platform has no errorText, and the stream goes on to [DONE].
    'upstream-error': () => write(
      (say) => say(
        { type: 'start', messageId: 'm' },
        {
          type: 'error', message: 'Agent failed', severity: 'error', timestamp: 1700000000000,
        },
      ),
      {},
      { headers: { 'x-vercel-ai-data-stream': 'v2' } },
    ),
    denied: () => write((say) => say(
      { type: 'start' },
      { type: 'tool-input-start', toolCallId: 'c', toolName: 'gated' },
      { type: 'tool-input-available', toolCallId: 'c', toolName: 'gated', input: { amount: 5 } },
      { type: 'tool-approval-request', approvalId: 'ap', toolCallId: 'c' },
      { type: 'tool-output-denied', toolCallId: 'c' },
      { type: 'finish' },
    )),
    keepalive: () => write(
      async (say) => {
        say({ type: 'start' });
        await sleep(250);
        say(...text('t', 'late'), { type: 'finish' });
      },
      {},
      { keepAliveMs: 80 },
    ),
    slow: () => write(async (say) => {
      say({ type: 'start' }, { type: 'text-start', id: 't' });
      for (const delta of '01234') {
        await sleep(100);
        say({ type: 'text-delta', id: 't', delta });
      }
      say({ type: 'text-end', id: 't' }, { type: 'finish' });
    }),
    hang: () => write(async (say) => {
      say({ type: 'start' });
      await sleep(600_000);
    }),

    // Faults of the connection, not of the library.
    truncated: () => write(async (say, response) => {
      say(
        { type: 'start' },
        { type: 'text-start', id: 't' },
        { type: 'text-delta', id: 't', delta: 'half' },
      );
      await sleep(50);
      response.socket.destroy();
    }),
    'eof-no-done': () => (response) => {
      response.writeHead(200, ai.UI_MESSAGE_STREAM_HEADERS);
      const chunks = [{ type: 'start' }, ...text('t', 'half').slice(0, 2)];
      response.end(chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join(''));
    },

    'http-401': () => problem(401, 'Unauthorized', 'Invalid Token', 'unauthorized'),
    'http-403': () => problem(403, 'Forbidden', 'no project permission', 'forbidden'),
    'http-429': () => refuse(
      429,
      { error: { code: 'too_many_requests', message: 'slow down' } },
      { 'retry-after': '2' },
    ),
    'http-500': () => refuse(500, {
      error: { code: 'internal_server_error', message: 'Failed to process chat completion' },
    }),
  };
}
