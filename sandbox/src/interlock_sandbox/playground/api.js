// The control API of the stand-in: what people do, and what they see.

const CONTROL = "/_control";

/** What the stand-in would not do, in its own words. */
export class Refused extends Error {}

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  return answerOf(await fetch(`${CONTROL}/${path}?${query}`));
}

export async function act(path, body) {
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  return answerOf(await fetch(`${CONTROL}/${path}`, request));
}

async function answerOf(response) {
  const body = await response.json();
  if (!response.ok) {
    throw new Refused(body.error);
  }
  return body;
}

/**
 * Follow what a person sees. `onEvent` gets each change, `onState` is told
 * whether the connection stands. Returns a function that ends it, and `begun`:
 * what is asked for after that misses no change.
 */
export function follow(team, user, onEvent, onState) {
  const query = new URLSearchParams({ team, user });
  const source = new EventSource(`${CONTROL}/feed?${query}`);
  source.addEventListener("message", (message) => onEvent(JSON.parse(message.data)));
  source.addEventListener("open", () => onState(true));
  source.addEventListener("error", () => onState(false));
  const begun = new Promise((resolve) => source.addEventListener("open", resolve, { once: true }));
  return { end: () => source.close(), begun };
}
