// A real Better Auth server: e-mail and password, and the organization plugin, on Postgres.
//
// Settings: databaseUrl, secret, trustedOrigins (a list), cookieCache (whether),
// rateLimit (whether). The tables are made at the start.
import { createHash, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';
import { betterAuth } from 'better-auth';
import { getMigrations } from 'better-auth/db/migration';
import { toNodeHandler } from 'better-auth/node';
import { organization } from 'better-auth/plugins';
import pg from 'pg';
import { listen, readSettings, sayReady } from '../peer.mjs';

const DAY_S = 24 * 60 * 60;

// Passwords are not what is tested here, and slow hashing is slow.
const password = {
  hash: async (text) => createHash('sha256').update(text).digest('hex'),
  verify: async ({ hash, password: text }) =>
    timingSafeEqual(Buffer.from(hash, 'hex'), createHash('sha256').update(text).digest()),
};

const settings = await readSettings();
let handle = (_request, response) => response.writeHead(503).end();
const url = await listen(createServer((request, response) => handle(request, response)));

const auth = betterAuth({
  baseURL: url,
  basePath: '/api/auth',
  secret: settings.secret,
  database: new pg.Pool({ connectionString: settings.databaseUrl }),
  trustedOrigins: settings.trustedOrigins,
  emailAndPassword: { enabled: true, password },
  session: {
    expiresIn: 7 * DAY_S,
    updateAge: DAY_S,
    cookieCache: { enabled: settings.cookieCache, maxAge: 300 },
  },
  rateLimit: { enabled: settings.rateLimit },
  telemetry: { enabled: false },
  plugins: [organization()],
});
await (await getMigrations(auth.options)).runMigrations();
handle = toNodeHandler(auth);
sayReady(url);
