// SPDX-License-Identifier: MIT-0
/**
 * `npm run exercise 3a` puts a fault into server.ts, and `npm run exercise 4` checks what a
 * participant has written there for exercise 4. The README tells the exercises.
 */
import { execFile } from 'node:child_process';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual, promisify } from 'node:util';
import { request } from 'undici';
import { examine } from './doctor.ts';
import {
  cleanUp,
  connectClient,
  openStream,
  postJson,
  startFirewall,
  startServer,
  Transcript,
} from './helpers.ts';

/** Starts the server that is checked, with these settings. */
export type Start = (env: NodeJS.ProcessEnv) => Promise<{ url: string; output: Transcript }>;

const project = join(import.meta.dirname, '..');
const run = promisify(execFile);
const TOKEN = { MCP_TOKEN: 'the-token' };
const WITH_TOKEN = { authorization: 'Bearer the-token' };

/** Fails with one sentence for the participant: what is missing, and what was seen. */
function demand(found: unknown, missing: string, seen: unknown): asserts found {
  if (!found) throw new Error(`${missing}. Seen: ${JSON.stringify(seen)?.slice(0, 1000)}`);
}

function orMissing(missing: string) {
  return ({ message }: Error) => {
    demand(false, missing, message);
  };
}

/** Each step has a minute of its own: a busy machine is no mistake. */
async function step<T>(name: string, work: Promise<T>) {
  const limit = sleep(60_000, undefined, { ref: false }).then(() => {
    throw new Error(`${name} is not over after 60 s`);
  });
  return Promise.race([work, limit]);
}

/** The check of Host and Origin comes before everything that a path does. */
async function refusesOthers(url: string, method: 'GET' | 'POST') {
  const headers = { ...WITH_TOKEN, host: 'evil.example' };
  const { statusCode } = await request(url, { method, headers });
  demand(statusCode === 403, `${method} ${url} with a foreign Host must get 403`, statusCode);
}

// ---- Exercise 3: repair lost sessions ----------------------------------------------------------

/** A small change: a text that must be there once, and what replaces it. */
export type Edit = [string, string];

export function edit(source: string, edits: Edit[]) {
  return edits.reduce((text, [find, replacement]) => {
    const parts = text.split(find);
    const missing =
      'server.ts must be as it was: `git checkout server.ts`, which deletes your work';
    demand(parts.length === 2, missing, `not once in it: ${find.trim()}`);
    return parts.join(replacement);
  }, source);
}

const STORED = `    // Stored before connect() sends the id: the client may post as soon as it has read it.
    transports.set(sessionId, transport);
`;
const CONNECTED = '      await getServer().connect(transport);\n';
const LATE =
  '      setTimeout(() => transports.set(sessionId, transport), 500); // Looks the user up.\n';
const REMOVED = `    req.resume();
    req.on('close', () => transports.delete(sessionId));
`;
const TRANSPORTS = '  const transports = new Map<string, SSEServerTransport>();\n';

/** Each fault, and the test of server.test.ts that it breaks. */
export const FAULTS: Record<string, [string, ...Edit[]]> = {
  '3a': [
    'the SDK makes the id, and the first event on the stream carries it',
    ['const { sessionId } = transport;', 'const sessionId = crypto.randomUUID();'],
  ],
  '3b': [
    'a message that is posted as soon as the id is known is taken',
    [STORED, ''],
    [CONNECTED, CONNECTED + LATE],
  ],
  '3c': ['a comment comes at each interval, and the session goes on', [STORED, STORED + REMOVED]],
  '3d': [
    'two sessions do not see each other’s replies',
    [TRANSPORTS, `${TRANSPORTS}  const mcpServer = getServer();\n`],
    [CONNECTED, '      await mcpServer.connect(transport);\n'],
  ],
};

/** Remembers which fault is in server.ts: repaired, the file may be as it was. */
const PLACED = join(project, 'node_modules/.exercise');

/** Puts a fault into server.ts, and says what two clients see. */
async function placeFault(name: string, edits: Edit[]) {
  const file = join(project, 'server.ts');
  const source = await readFile(file, 'utf8');
  for (const [, ...others] of Object.values(FAULTS)) edit(source, others); // None may be in it.
  await writeFile(file, edit(source, edits));
  await writeFile(PLACED, name);
  const { url } = await startServer({});
  for (const who of ['first', 'second']) {
    const called = connectClient(url).then((client) => client.ping());
    console.log(`The ${who} client: ${await called.then(() => 'its ping is answered', String)}`);
  }
  return 'server.ts has a fault now: repair it, and run `npm run exercise 3`.';
}

/** Runs the suite Sessions in a folder, and returns the names of the tests that fail. */
export async function findFailing(folder: string) {
  const options = ['--import', 'tsx', '--test-reporter=tap', '--test-name-pattern=^Sessions'];
  const env = { ...process.env, NODE_TEST_CONTEXT: undefined };
  const tests = run(process.execPath, [...options, 'server.test.ts'], { cwd: folder, env });
  const { stdout } = await tests.catch((error: { stdout: string }) => error);
  const names = [...stdout.matchAll(/^ +not ok \d+ - (.+)$/gm)].map(([, name]) => name);
  return /^# pass [1-9]/m.test(stdout) ? names : [...names, 'none could be run'];
}

/** A session ends with its stream: a timer that ends it later would be seen by no test. */
const TIMER = /set(Timeout|Interval)\([^;]*(transports\.(delete|clear)|transport\.close)/;

export async function checkSessions(start: Start, source: string) {
  demand(!TIMER.test(source), 'Only the end of its stream may end a session', 'a timer');
  const names = await step('The suite Sessions', findFailing(project));
  demand(names.length === 0, 'These tests of the suite Sessions fail', names);
  const { url } = await start({});
  const { findings } = await step('The doctor', examine(`${url}/sse`, { watch: 1000 }));
  demand(findings.length === 0, 'The doctor must find nothing', findings);
}

// ---- Exercise 4: make sessions visible ---------------------------------------------------------

export async function checkHealth(start: Start) {
  const { url, output } = await start(TOKEN);

  /** Gives the server some seconds to notice what has happened. */
  async function healthIs(when: string, wanted: object) {
    const end = Date.now() + Transcript.patience;
    for (;;) {
      const answer = await fetch(`${url}/healthz`);
      const health = await answer.json().catch(() => answer.status);
      const isRight = answer.ok && isDeepStrictEqual({ ...health, ...wanted }, health);
      if (isRight) return health.longestMs;
      const missing = `${when}: GET /healthz must say ${JSON.stringify(wanted)}`;
      demand(Date.now() < end, missing, health);
      await sleep(50);
    }
  }

  await refusesOthers(`${url}/healthz`, 'GET');
  await fetch(`${url}/sse`);
  await fetch(`${url}/nowhere`, { headers: WITH_TOKEN });
  await healthIs('Requests were refused', { sessions: 0, started: 0, longestMs: 0 });
  const startedAt = Date.now();
  const streams = [await openStream(url, WITH_TOKEN), await openStream(url, WITH_TOKEN)];
  await healthIs('Two streams are open', { sessions: 2, started: 2, longestMs: 0 });
  await sleep(1000);
  for (const { leave } of streams) leave();
  const longest = await healthIs('They have ended', { sessions: 0, started: 2 });
  const lived = Date.now() - startedAt;
  demand(longest > 900 && longest <= lived, `longestMs must be 1000 to ${lived}`, longest);
  const third = await openStream(url, WITH_TOKEN);
  third.leave();
  const kept = await healthIs('A third one has ended', { sessions: 0, started: 3 });
  demand(kept === longest, 'A shorter session must leave longestMs as it was', kept);
  isQuiet(output);
}

function isQuiet({ text }: Transcript) {
  const isRight = !text.includes('Error handling request');
  demand(isRight, 'The server must log no error: a `return` may be missing', text);
}

// ---- Exercise 5: a second tool that ends with its session --------------------------------------

const INTERFACES = { name: 'show_interfaces' };
const ANSWER = '<response status="success"><result><ifnet/></result></response>';

export async function checkInterfaces(start: Start) {
  const { state, calls, news, env } = await startFirewall();
  const { url } = await start(env);
  const [one, two] = [await connectClient(url), await connectClient(url)];
  state.answer = ANSWER;
  const { content } = await one.callTool(INTERFACES);
  const isRight = isDeepStrictEqual(content, [{ type: 'text', text: ANSWER }]);
  demand(isRight, 'show_interfaces must return what the firewall answers', content);
  const asked = Object.fromEntries(calls.at(-1)?.form ?? []);
  const wanted = { type: 'op', cmd: '<show><interface>all</interface></show>' };
  demand(isDeepStrictEqual(asked, wanted), 'The firewall must get the command of the page', asked);

  state.answer = '';
  const cancel = new AbortController();
  await endsToo(news, one.callTool(INTERFACES, undefined, cancel), () => cancel.abort());
  await endsToo(news, two.callTool(INTERFACES), () => two.close());
}

/** Ends a call that the firewall does not answer, and waits until the firewall knows. */
async function endsToo(news: Transcript, call: Promise<unknown>, end: () => unknown) {
  call.catch(() => undefined);
  news.text = '';
  await news.match(/call/).catch(orMissing('A call must reach the firewall'));
  await end();
  await news.match(/end/).catch(orMissing('A client cancels or leaves: its call must end too'));
}

// ---- Exercise 7: Streamable HTTP beside SSE ----------------------------------------------------

export async function checkMcp(start: Start) {
  const { state, calls, news, env } = await startFirewall();
  const { url, output } = await start({ ...env, ...TOKEN });
  const headers = { ...WITH_TOKEN, accept: 'application/json, text/event-stream' };
  const params = { name: 'show_system_info' };
  const message = { jsonrpc: '2.0', id: 1, method: 'tools/call', params };
  const call = async (signal?: AbortSignal) => {
    const answer = await postJson(`${url}/mcp`, message, headers, signal);
    const text = await answer.text();
    demand(text.includes('success'), 'A call on /mcp must be answered, whatever others do', text);
  };
  const first = call();
  first.catch(() => undefined);
  await news.match(/call/).catch(orMissing('A call on /mcp must reach the firewall'));
  state.answer = ANSWER;
  await call();
  calls[0]?.res.end(ANSWER);
  await first;
  state.answer = '';
  const leave = new AbortController();
  await endsToo(news, call(leave.signal), () => leave.abort());
  await refusesOthers(`${url}/mcp`, 'POST');
  const { status } = await fetch(`${url}/mcp`, { method: 'POST' });
  demand(status === 401, 'POST /mcp without the token must get 401', status);
  isQuiet(output);
}

// ---- The command -------------------------------------------------------------------------------

const CHECKS: Record<string, (start: Start, source: string) => Promise<void>> = {
  '3': checkSessions,
  '4': (start) => step('Exercise 4', checkHealth(start)),
  '5': (start) => step('Exercise 5', checkInterfaces(start)),
  '7': (start) => step('Exercise 7', checkMcp(start)),
};

async function runExercise(name: string) {
  const readme = await readFile(join(project, 'README.md'), 'utf8');
  const titles = readme.match(/(?<=^### Exercise )\d.*/gm) ?? [];
  const list = `${titles.join('\n')}\n\`npm run exercise 4\` checks exercise 4; 1, 2 and 6 need no check.`;
  if (!name) return list;
  const fault = FAULTS[name];
  if (fault) return placeFault(name, fault.slice(1) as Edit[]);
  const check = CHECKS[name];
  if (!check) throw new Error(`There is nothing to check or to place for ${name}:\n${list}`);
  const placed = await readFile(PLACED, 'utf8').catch(() => '');
  if (name === '3' && !placed)
    throw new Error('Nothing is broken: begin with `npm run exercise 3a`.');
  const types = step(
    'The type check',
    run('npm', ['run', '--silent', 'typecheck'], { cwd: project, shell: true }),
  );
  await types.catch(({ stdout, message }) =>
    demand(false, 'The type check must pass', stdout?.split('\n')[0] ?? message),
  );
  const source = await readFile(join(project, 'server.ts'), 'utf8');
  await check(startServer, source);
  if (name === '3') await rm(PLACED);
  return `✔ Exercise ${name === '3' ? placed : name} is done.`;
}

if (resolve(process.argv[1] ?? '') === import.meta.filename) {
  const told = runExercise(process.argv[2] ?? '').catch(({ message }: Error) => {
    process.exitCode = 1;
    return `✘ ${message}`;
  });
  console.log(await told);
  await cleanUp();
  process.exit();
}
