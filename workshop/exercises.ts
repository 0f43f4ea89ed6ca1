// SPDX-License-Identifier: MIT-0
/**
 * `npm run exercise 3a` puts a fault into server.ts, and `npm run exercise 4` checks what a
 * participant has written there for exercise 4. The README tells the exercises.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { format, isDeepStrictEqual } from 'node:util';
import { request } from 'undici';
import { examine, until } from './doctor.ts';
import {
  CHILD,
  cleanUp,
  callTool,
  openStream,
  outputOf,
  startFirewall,
  startServer,
  patience,
  type FirewallCall,
} from './helpers.ts';

/** Starts the server that is checked, with these settings. */
export type Start = (env: NodeJS.ProcessEnv) => ReturnType<typeof startServer>;

const project = join(import.meta.dirname, '..');
const file = join(project, 'server.ts');
const TOKEN = { MCP_TOKEN: 'the-token' };
const headers = { authorization: 'Bearer the-token' };

/** Fails with a sentence for the participant: what must be, and what was seen. */
function demand(found: unknown, must: string, seen: unknown): asserts found {
  if (!found) throw new Error(format(`${must}. Seen:`, seen ?? 'no answer'));
}

/** Sends requests that must be refused, each told in a line: its status, then the request. */
async function refuses(url: string, ...lines: string[]) {
  for (const line of lines) {
    const [, method, path = '', name = '', value] = line.split(' ');
    const { statusCode } = await request(url + path, {
      method,
      headers: { ...headers, [name]: value },
    });
    demand(line.startsWith(`${statusCode}`), line.replace(' ', ' must answer '), statusCode);
  }
}

async function typeCheck() {
  const errors = await outputOf('npm run --silent typecheck || echo It failed.');
  demand(!errors, 'The type check must pass', errors);
}

// ---- Exercise 3: repair lost sessions ----------------------------------------------------------

/** A small change: a text that must be there once, and what replaces it. */
export type Edit = [string, string];

export function edit(source: string, edits: Edit[]) {
  return edits.reduce((changed, [find, replacement]) => {
    const parts = changed.split(find);
    demand(
      parts.length === 2,
      'server.ts must be as it was: keep your work elsewhere and `git checkout server.ts`',
      `not once in it: ${find.trim()}`,
    );
    return parts.join(replacement);
  }, source);
}

export const FAULTS: Record<string, Edit[]> = {
  '3a': [['const { sessionId } = transport;', 'const sessionId = crypto.randomUUID();']],
  '3b': [
    [
      `    // Stored before connect() sends the id: the client may post as soon as it has read it.
    transports.set(sessionId, transport);
`,
      '',
    ],
    [
      '      await getServer().connect(transport);',
      // The doctor's first messages come before 900 ms; after a second, it sends the others.
      `      await getServer().connect(transport);
      setTimeout(() => transports.set(sessionId, transport), 900); // Looks the user up.`,
    ],
  ],
  '3c': [
    [
      "    const streamEnd = once(res, 'close');",
      `    req.resume();
    req.on('close', () => transports.delete(sessionId));
    const streamEnd = once(res, 'close');`,
    ],
  ],
  '3d': [
    ['const transports = new Map', 'const mcpServer = getServer();\n  const transports = new Map'],
    ['      await getServer().connect', '      await mcpServer.connect'],
  ],
};

/** Puts a fault into server.ts, and says what two clients see. */
async function placeFault(name: string, edits: Edit[]) {
  const changed = edit(readFileSync(file, 'utf8'), edits);
  // The last line tells that a fault was put in: repaired, the others may be as they were.
  writeFileSync(file, `${changed}// Exercise ${name}\n`);
  const { url } = await startServer({});
  for (const who of ['first', 'second']) {
    const { answer } = callTool(`${url}/sse`, 'show_system_info');
    console.log(`The ${who} client sees`, await answer);
  }
  return 'server.ts has a fault now: repair it, and run `npm run exercise 3`.';
}

/** Runs suites of server.test.ts in a folder, and returns the names of the tests that fail. */
export async function findFailing(folder: string, suites: string) {
  const command = `node --test-force-exit --test-reporter=tap --test-name-pattern="${suites}" server.test.ts`;
  const output = await outputOf(command, folder);
  const names = [...output.matchAll(/^ +not ok \d+ - (.+)$/gm)].map(([, name]) => name);
  return /^# pass [1-9]/m.test(output) ? names : ['none could be run', ...names];
}

async function suites() {
  const names = await findFailing(project, '^(Sessions|Requests|The tool)');
  demand(!names[0], 'All tests of Sessions, Requests and The tool must pass, and some fail', names);
}

/** On this clock, 8 hours pass in a second: the doctor meets what a timer does much later. */
const CLOCK = `--import=data:text/javascript,${encodeURIComponent(`
import { syncBuiltinESMExports } from 'node:module';
import timers from 'node:timers';
import promises from 'node:timers/promises';
const factor = 28800;
const { now } = Date;
const start = now();
Date.now = () => start + (now() - start) * factor;
globalThis.Date = new Proxy(Date, {
  construct: (Real, given) => new Real(...(given.length ? given : [Date.now()])),
});
const { timeout } = AbortSignal;
AbortSignal.timeout = (delay) => timeout.call(AbortSignal, Math.ceil(delay / factor));
for (const [place, position] of [[globalThis, 1], [timers, 1], [promises, 0]]) {
  for (const name of ['setTimeout', 'setInterval']) {
    const slow = place[name];
    const fast = (...given) => slow(...given.with(position, given[position] / factor));
    place[name] = Object.defineProperties(fast, Object.getOwnPropertyDescriptors(slow));
  }
}
syncBuiltinESMExports();
`)}`;

export async function doctor(start: Start, pauseMs = 1000) {
  const { url } = await start({ NODE_OPTIONS: `${CHILD} ${CLOCK}` });
  const { findings } = await examine(`${url}/sse`, { pauseMs, watchMs: 3000 });
  demand(
    !findings[0],
    'The doctor must find nothing, while a day of the server passes: does a timer end sessions?',
    findings,
  );
}

/** A session must not come back, long after its client has left. */
async function staysEnded(start: Start) {
  const { url } = await start({});
  const { endpoint, leave } = await openStream(url);
  leave();
  await sleep(2000);
  const { status } = await fetch(endpoint, { method: 'POST' });
  demand(status === 404, 'Two seconds after its stream has ended, a POST must get 404', status);
}

// ---- Exercise 4: make sessions visible ---------------------------------------------------------

export async function healthz(start: Start) {
  const { url, output } = await start(TOKEN);

  async function healthIs(when: string, wanted: object) {
    let health: any;
    const isSaid = await until(async () => {
      const answer = await fetch(`${url}/healthz`);
      health = await answer.json().catch(() => `${answer.status}, and no JSON`);
      return answer.status === 200 && isDeepStrictEqual({ ...health, ...wanted }, health);
    }, patience.ms);
    demand(isSaid, `${when}: GET /healthz must say ${JSON.stringify(wanted)}`, health);
    return health.longestMs;
  }

  await refuses(
    url,
    '403 GET /healthz host evil.example',
    '403 GET /healthz origin https://evil.example',
    '401 GET /sse authorization none',
    '401 GET /sse?/healthz authorization none',
    '404 POST /messages?sessionId=1 accept */*',
  );
  await healthIs('Requests were refused', { sessions: 0, started: 0, longestMs: 0 });
  const first = await openStream(url, headers);
  first.leave();
  const longestMs = await healthIs('One stream has ended', { sessions: 0, started: 1 });
  const startedAt = Date.now();
  const long = await openStream(url, headers);
  await sleep(2000);
  const short = await openStream(url, headers);
  await healthIs('Two more are open', { sessions: 2, started: 3, longestMs });
  long.leave();
  const longest = await healthIs('The longer has ended', { sessions: 1, started: 3 });
  demand(
    longest > 1900 && longest <= Date.now() - startedAt,
    'longestMs must be some 2000',
    longest,
  );
  short.leave();
  const kept = await healthIs('All have ended', { sessions: 0, started: 3 });
  demand(kept === longest, `A shorter session must leave longestMs at ${longest}`, kept);
  demand(
    !output.text.includes('Error handling request'),
    'The server must log no error (a `return` may be missing)',
    output.text,
  );
}

// ---- Exercises 5 and 7: calls that reach the firewall ------------------------------------------

/** What the firewall answers. */
const XML = '<response status="success"><result/></response>';

/** Calls a tool as a client of its own, and waits until the firewall is asked. */
async function call(url: string, calls: FirewallCall[], name = 'show_system_info') {
  const client = callTool(url, name, headers);
  const seen = await Promise.race([client.answer, until(() => calls[0], patience.ms)]);
  const asked = calls.shift();
  demand(asked, `A call of ${name} at ${url} must reach the firewall`, seen);
  const { cmd, res } = asked;

  return {
    cmd,
    async returns() {
      res.end(XML);
      const content = await client.answer;
      demand(
        isDeepStrictEqual(content, [{ type: 'text', text: XML }]),
        `A call at ${url} must return ${XML}, also while others wait`,
        content,
      );
    },
    async endsToo(how: 'leave' | 'cancel') {
      await client[how]();
      demand(
        await until(() => res.destroyed, patience.ms),
        `When a client ${how}s, its call must end too`,
        'the firewall works on',
      );
    },
  };
}

export async function showInterfaces(start: Start) {
  const { calls, env } = await startFirewall();
  const url = `${(await start(env)).url}/sse`;
  const show = () => call(url, calls, 'show_interfaces');
  const [one, two, three] = [await show(), await show(), await show()];
  demand(
    /^\s*<show>\s*<interface>\s*all\s*<\/interface>\s*<\/show>\s*$/.test(one.cmd),
    'show_interfaces must ask for <show><interface>all</interface></show>',
    one.cmd,
  );
  await one.endsToo('cancel');
  await two.endsToo('leave');
  await three.returns();
}

export async function mcp(start: Start) {
  const { calls, env } = await startFirewall();
  const { url } = await start({ ...env, ...TOKEN });
  await refuses(url, '403 POST /mcp host evil.example', '401 POST /mcp authorization none');
  const waiting = [];
  for (const path of ['/mcp', '/mcp', '/sse']) waiting.push(await call(url + path, calls));
  for (const { returns } of waiting) await returns();
  await (await call(`${url}/mcp`, calls)).endsToo('leave');
}

// ---- The command -------------------------------------------------------------------------------

const CHECKS: Record<string, ((start: Start) => Promise<void>)[]> = {
  '3': [doctor, staysEnded],
  '4': [healthz],
  '5': [showInterfaces],
  '7': [mcp],
};

async function runExercise(name: string) {
  demand(
    Object.hasOwn({ ...FAULTS, ...CHECKS }, name),
    'There is a check for 3, 4, 5 and 7, and a fault in 3a to 3d',
    name || 'no name',
  );
  if (FAULTS[name]) return placeFault(name, FAULTS[name]);
  demand(
    name !== '3' || readFileSync(file, 'utf8').includes('// Exercise 3'),
    'Begin with `npm run exercise 3a`',
    'server.ts as it was, with no fault put in',
  );
  for (const check of [typeCheck, suites, ...(CHECKS[name] ?? [])]) {
    // Each has a minute of its own, because a busy machine is no mistake.
    const limit = sleep(60_000, check.name);
    const late = await Promise.race([check(startServer), limit]);
    if (late)
      throw new Error(
        `${late} is not over after 60 s: a request got no answer, or the machine is busy.`,
      );
  }
  return `✔ Exercise ${name} is done.`;
}

if (process.argv[1] === import.meta.filename) {
  await runExercise(process.argv[2] ?? '').then(console.log, ({ message }: Error) => {
    console.log(`✘ ${message}`);
    process.exitCode = 1;
  });
  await cleanUp();
  process.exit();
}
