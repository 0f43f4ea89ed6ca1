// SPDX-License-Identifier: MIT-0
import { exec } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual, promisify } from 'node:util';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { request } from 'undici';
import { examine } from './doctor.ts';
import {
  cleanups,
  connectClient,
  ignore,
  openStream,
  refusal,
  runServer,
  START,
  startFirewall,
  success,
  until,
} from './helpers.ts';

const run = promisify(exec);

// ==== The exercises ===========================================================================

export const WAIT = 4_000;
export const WITH_TOKEN = { authorization: 'Bearer the-token' };
export const TOKEN_LINE = 'Authorization: Bearer the-token\r\n';

/** Starts the server that is checked, with these settings, and returns its URL. */
export type Start = (env: Record<string, string>) => Promise<string>;

/** What a check is waiting for. */
let awaited = 'server.ts must start';

/** Fails with one sentence for the participant: what is missing, and what was seen. */
export function demand(found: unknown, missing: string, seen: unknown): asserts found {
  if (!found) throw new Error(`${missing}. Seen: ${JSON.stringify(seen)?.slice(0, 300)}`);
}

export function orMissing(missing: string) {
  awaited = missing;
  return ({ message }: Error): never => {
    demand(false, missing, message);
  };
}

export const OTHERS = [
  ['without the token', {}, 401],
  ['with a foreign Host', { ...WITH_TOKEN, host: 'attacker.example' }, 403],
  ['with a foreign Origin', { ...WITH_TOKEN, origin: 'http://attacker.example' }, 403],
] as const;

/** The checks of Origin and of the token come before everything that a path does. */
export async function refusesOthers(url: string, requests: string[]) {
  for (const line of requests) {
    const [method, path] = line.split(' ') as ['GET' | 'POST', string];
    for (const [who, headers, expected] of OTHERS) {
      if (path === '/healthz' && expected === 401) continue; // It needs no token.
      const missing = `${line} ${who} must get ${expected}`;
      const answer = await request(url + path, { method, headers }).catch(orMissing(missing));
      demand(answer.statusCode === expected, missing, answer.statusCode);
    }
  }
}

// ---- Exercise 4: make sessions visible -------------------------------------------------------

export async function checkHealth(start: Start) {
  const url = await start({ ...START, MCP_TOKEN: 'the-token' });

  async function healthIs(when: string, wanted: object) {
    const answer = await fetch(`${url}/healthz`).catch(orMissing('GET /healthz must be answered'));
    demand(answer.ok, 'GET /healthz must get 200, and need no token', answer.status);
    const health = await answer.json().catch(ignore);
    demand(
      isDeepStrictEqual({ ...health, ...wanted }, health),
      `${when}: GET /healthz must say ${JSON.stringify(wanted)}`,
      health,
    );
    return health.longestMs;
  }

  /** Opens a session, and returns what ends it. */
  async function open() {
    const { socket, post } = await openStream(url, '/sse', TOKEN_LINE);
    return async () => {
      socket.destroy();
      const isGone = async () => (await post(1, WITH_TOKEN)).status === 404;
      await until(isGone, () => 'An ended session must get 404', WAIT);
    };
  }

  await refusesOthers(url, ['GET /healthz', 'GET /sse', 'POST /messages']);
  await healthIs('Requests were refused', { sessions: 0, started: 0, longestMs: 0 });
  const endFirst = await open();
  const endSecond = await open();
  await healthIs('Two streams are open', { sessions: 2, started: 2, longestMs: 0 });
  await sleep(1000);
  await endFirst();
  await endSecond();
  const endThird = await open();
  const longest = await healthIs('A third stream is open', { sessions: 1, started: 3 });
  demand(longest > 900, 'After one second longestMs must say so', longest);
  await endThird();
  const kept = await healthIs('All streams have ended', { sessions: 0, started: 3 });
  demand(kept >= longest, 'A shorter session must leave longestMs as it was', kept);
}

// ---- Exercise 5: a call that ends with its session -------------------------------------------

export const ADDRESS_TOOL = { name: 'show_address_objects' };
export const ADDRESS_CALL = {
  type: 'config',
  action: 'show',
  xpath: "/config/devices/entry[@name='localhost.localdomain']/vsys/entry[@name='vsys1']/address",
};
export const ADDRESS = { name: 'web', fqdn: 'web.example', tag: { member: 'dmz' } };
export const ENTRY =
  '<entry name="web"><fqdn>web.example</fqdn><tag><member>dmz</member></tag></entry>';

/** A firewall that gives its `answer`; without one, it keeps its callers waiting. */
export async function startChangingFirewall() {
  const state = { answer: '' };
  const firewall = await startFirewall((res) => {
    if (state.answer) res.end(state.answer);
  });
  return { state, ...firewall };
}

export type Calls = Awaited<ReturnType<typeof startFirewall>>['calls'];

/** Begins a call that the firewall does not answer, ends it, and waits until the firewall knows. */
export async function endsToo(
  calls: Calls,
  who: string,
  begin: () => Promise<unknown>,
  end: () => unknown,
) {
  const { length } = calls;
  begin().catch(ignore);
  await until(
    () => calls.length > length,
    () => 'A call must ask the firewall',
    WAIT,
  );
  await end();
  const isOver = () => calls[length]?.res.destroyed;
  await until(
    isOver,
    () => `${who}: its call to the firewall must end too. Seen: the call goes on.`,
    WAIT,
  );
}

export async function checkAddresses(start: Start) {
  const { state, calls, env } = await startChangingFirewall();
  const client = await connectClient(await start(env));
  const call = (options = {}) => client.callTool(ADDRESS_TOOL, undefined, options);
  const { tools } = await client.listTools();
  const isThere = tools.some(
    ({ name, annotations }) => name === ADDRESS_TOOL.name && annotations?.readOnlyHint,
  );
  demand(isThere, 'There must be a tool show_address_objects with readOnlyHint: true', tools);
  for (const number of [2, 1, 0]) {
    const list = `<address>${ENTRY.repeat(number)}</address>`;
    state.answer = `<response status="success"><result>${list}</result></response>`;
    const wanted = { addresses: Array(number).fill(ADDRESS) };
    const result = await call().catch(orMissing('The tool must answer'));
    const asked = Object.fromEntries(new URLSearchParams(calls.at(-1)?.body));
    const isRight = isDeepStrictEqual(asked, ADDRESS_CALL);
    demand(isRight, 'The firewall must be asked as the README says', asked);
    demand(
      isDeepStrictEqual(result.structuredContent, wanted),
      `The result must be ${JSON.stringify(wanted)}`,
      result,
    );
  }
  state.answer = refusal('403', '<msg>No right</msg>');
  const refused = JSON.stringify(await call());
  demand(
    /No right.*"isError":true/.test(refused),
    'The firewall refuses: the client must get an error with its words',
    refused,
  );
  state.answer = '';
  const controller = new AbortController();
  await endsToo(
    calls,
    'A client cancels',
    () => call(controller),
    () => controller.abort(),
  );
  await endsToo(
    calls,
    'A client leaves',
    () => call(),
    () => client.close(),
  );
  const withoutFirewall = await connectClient(await start(START));
  await withoutFirewall.listTools(); // From now on the client checks results against the schema.
  const sample = JSON.stringify(await withoutFirewall.callTool(ADDRESS_TOOL));
  demand(
    /addresses\W+name.*sample data/i.test(sample),
    'Without a firewall, the tool must return a sample with its note',
    sample,
  );
}

// ---- Exercise 7: Streamable HTTP beside SSE --------------------------------------------------

export const INFO_CALL = { name: 'show_system_info' };

export async function checkMcp(start: Start) {
  const { state, calls, env } = await startChangingFirewall();
  const url = await start({ ...env, MCP_TOKEN: 'the-token' });
  const requestInit = { headers: WITH_TOKEN };

  async function connect() {
    const client = new Client({ name: 'client', version: '1.0.0' });
    cleanups.push(() => client.close());
    const transport = new StreamableHTTPClientTransport(new URL('/mcp', url), { requestInit });
    const missing =
      'Clients must be able to connect to /mcp, and each request have a server of its own';
    await client.connect(transport).catch(orMissing(missing));
    return client;
  }

  const first = await connect();
  const second = await connect();
  await endsToo(
    calls,
    'A client of /mcp leaves',
    () => first.callTool(INFO_CALL),
    async () => {
      state.answer = success('<model>PA-440</model>');
      const missing = 'While a call of another client goes on, a call on /mcp must be answered';
      const result = await second.callTool(INFO_CALL).catch(orMissing(missing));
      demand(JSON.stringify(result).includes('"model":"PA-440"'), missing, result);
      await first.close();
    },
  );
  await refusesOthers(url, ['POST /mcp', 'GET /sse', 'POST /messages']);
  const { post } = await openStream(url, '/sse', TOKEN_LINE);
  const { status } = await post(1, WITH_TOKEN);
  demand(status === 202, 'A POST to /messages must get 202 as before', status);
}

// ---- Exercise 3: repair lost sessions --------------------------------------------------------

/** A small change: a text that must be there once, and what replaces it. */
export type Edit = [string, string];

export function edit(source: string, edits: Edit[]) {
  return edits.reduce((text, [find, replacement]) => {
    const parts = text.split(find);
    demand(
      parts.length === 2,
      'Run `git checkout server.ts` first, because this must be in it once',
      find,
    );
    return parts.join(replacement);
  }, source);
}

export const STORED = `    // Stored before connect() sends the id: the client may post as soon as it has read it.
    transports.set(sessionId, transport);
`;
export const CONNECTED = 'await getServer().connect(transport);';

export const LATE =
  '    setTimeout(() => transports.set(sessionId, transport), 500); // Looks the user up.\n';
export const REMOVED = `    req.resume();
    req.on('close', () => transports.delete(sessionId));
`;
export const SERVER = '  const mcpServer = getServer();\n';

/** The ordinary test that a fault breaks, and what the fault changes. */
export const PLACED: Record<string, [string, ...Edit[]]> = {
  '3a': [
    'the SDK makes the id, and the first event carries it',
    ['const { sessionId } = transport;', 'const sessionId = crypto.randomUUID();'],
  ],
  '3b': ['a message that is posted as soon as the id is known is taken', [STORED, LATE]],
  '3c': ['a session stays open while its stream is open', [STORED, STORED + REMOVED]],
  '3d': [
    'two sessions do not see each other’s replies',
    ['  const running = new Set', `${SERVER}  const running = new Set`],
    [
      `// Each session has a server of its own, because an McpServer takes only one transport.
      ${CONNECTED}`,
      'await mcpServer.connect(transport);',
    ],
  ],
  '3e': [
    'a comment comes at each interval, until the session ends',
    ["res.write(': keep-alive\\n\\n')", "res.write('')"],
  ],
};

/** Puts a fault into server.ts, and says what two clients see. */
export async function placeFault([, ...edits]: (typeof PLACED)[string], start: Start) {
  const source = await readFile('server.ts', 'utf8');
  for (const [, ...others] of Object.values(PLACED)) edit(source, others); // None may be in it.
  await writeFile('server.ts', edit(source, edits));
  const url = await start(START);
  for (const who of ['first', 'second']) {
    const called = connectClient(url).then((client) => client.callTool(INFO_CALL));
    console.log(`The ${who} client: ${await called.then(() => 'its call is answered', String)}`);
  }
  return 'server.ts has a fault now: repair it, and run `npm run exercise 3`.';
}

/** Runs the tests that a pattern names, and returns the name of the first that fails. */
export async function findFailing(pattern: string, folder: string) {
  const options = `--import tsx --test-reporter=tap --test-name-pattern="${pattern}"`;
  const env = { ...process.env, PATIENCE_MS: '3000', NODE_TEST_CONTEXT: undefined };
  const tests = run(`node ${options} --test-force-exit server.test.ts`, { cwd: folder, env });
  return tests.then(ignore, ({ stdout }) => {
    return /^ +not ok \d+ - (.+)$/m.exec(stdout)?.[1] ?? 'none could be run';
  });
}

export async function checkSessions(start: Start) {
  const url = await start(START);
  awaited = 'The suite Sessions and the doctor must come to an end';
  const name = await findFailing('^Sessions', '.');
  demand(!name, 'The suite Sessions must pass', `this test fails: ${name}`);
  const { findings } = await examine(`${url}/sse`, { watch: 1000, pause: 300 });
  demand(findings.length === 0, 'The doctor must find nothing', findings);
}

// ---- The command -----------------------------------------------------------------------------

export const EXERCISES: Record<string, (start: Start) => Promise<void>> = {
  '3': checkSessions,
  '4': checkHealth,
  '5': checkAddresses,
  '7': checkMcp,
};

export async function runExercise(name: string) {
  const start: Start = async (env) => {
    const server = await runServer(env);
    const fail = () =>
      demand(false, 'server.ts must not end', /^\w*Error.*/m.exec(server.text)?.[0]);
    void server.exit.then(fail);
    const [, url = ''] = await server.line(/GET (.*)\/sse,/).catch(orMissing('It must start'));
    awaited = 'server.ts must answer';
    return url;
  };
  const fault = PLACED[name];
  if (fault) return placeFault(fault, start);
  const check = EXERCISES[name];
  if (!check) {
    const readme = await readFile('README.md', 'utf8');
    const titles = readme.match(/(?<=^### Exercise )\d.*/gm) ?? [];
    return `${titles.join('\n')}\nnpm run exercise 4 checks exercise 4; 1, 2 and 6 need no check.`;
  }
  // A name without a use does not stop people in the middle of their work.
  const types = run('npm run --silent typecheck -- --noUnusedLocals false');
  await types.catch(({ stdout }) =>
    demand(false, 'The type check must pass', stdout.split('\n')[0]),
  );
  await check(start);
  return `✔ Exercise ${name} is done.`;
}

if (process.argv[1] === import.meta.filename) {
  const finish = (text: string, code: number) => {
    process.stdout.write(`${text}\n`, () => process.exit(code));
  };
  const fail = ({ message }: Error) => finish(`✘ ${message}`, 1);
  process.on('uncaughtException', fail);
  setTimeout(() => finish(`✘ ${awaited}. Seen: nothing in 15 s`, 1), 15_000);
  await runExercise(process.argv[2] ?? '').then((text) => finish(text, 0), fail);
}
