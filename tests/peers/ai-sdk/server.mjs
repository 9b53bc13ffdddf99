// POST /run/api/chat answered by the real AI SDK, with models that play a script.
//
// Settings: package (ai-6 or ai-7). The last user text picks the answer: scenario:NAME.
//   GET /scenarios   the names
//   GET /last        the last chat request; waits until its connection is closed
//   POST /read       what the AI SDK's own client makes of a stream: the body is its bytes
import { createServer } from 'node:http';
import { json, text } from 'node:stream/consumers';
import * as z from 'zod';
import { listen, readSettings, sayReady } from '../peer.mjs';
import { makeScenarios } from './scenarios.mjs';

const settings = await readSettings();
const ai = await import(settings.package);
const scenarios = makeScenarios(ai, await import(`${settings.package}/test`), z);

let last = null;

async function chat(request, response) {
  const body = await json(request);
  const closed = new Promise((resolve) => {
    response.once('close', () => resolve({ early: !response.writableFinished }));
  });
  last = { headers: request.headers, body, closed };
  const name = /scenario:([\w-]+)/.exec(body.messages.at(-1).content)[1];
  await scenarios[name]()(response);
}

// Read a stream as the library's own client does.
async function read(bytes) {
  const broken = [];
  const chunks = ai.parseJsonEventStream({
    stream: new Response(bytes).body,
    schema: ai.uiMessageChunkSchema,
  });
  const valid = chunks.pipeThrough(new TransformStream({
    transform(chunk, controller) {
      if (chunk.success) controller.enqueue(chunk.value);
      else broken.push(String(chunk.error));
    },
  }));
  let parts = [];
  const onError = (error) => broken.push(String(error));
  for await (const message of ai.readUIMessageStream({ stream: valid, onError })) {
    parts = message.parts;
  }
  return { parts, broken };
}

const routes = {
  'GET /scenarios': async () => Object.keys(scenarios),
  'GET /last': async () => ({ ...last, closed: await last.closed }),
  'POST /read': async (request) => read(await text(request)),
};

const server = createServer(async (request, response) => {
  const route = `${request.method} ${request.url}`;
  try {
    if (route === 'POST /run/api/chat') await chat(request, response);
    else response.end(JSON.stringify(await routes[route](request)));
  } catch (error) {
    console.error(route, error);
    response.destroy();
  }
});
// A stream that was cut on purpose must not end the peer.
process.on('uncaughtException', (error) => console.error('uncaught', error));
sayReady(await listen(server));
