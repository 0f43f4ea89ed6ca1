// SPDX-License-Identifier: MIT-0
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { createMcpHttpServer, type McpHttpServerOptions, type Session } from '../server.ts';

export const ignore = () => undefined;

// ---- Helpers ---------------------------------------------------------------------------------

/** The settings that every start needs. Add those that your own `main()` cannot do without. */
export const START = { PORT: '0' };

// What is left behind is removed on exit, and a signal alone would be no exit. If `npm test` is
// killed, this process gets another parent, and has nobody to work for.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));
export const { ppid } = process;
setInterval(() => process.ppid === ppid || process.exit(1), 500).unref();

export const cleanups: (() => unknown)[] = [];
export const cleanUp = async () => {
  for (const cleanup of cleanups.reverse()) await cleanup();
};

export const logged: string[] = [];

/** How long to wait for something that must happen, in milliseconds. */
export const PATIENCE = Number(process.env['PATIENCE_MS'] ?? 20_000);

/** Most tests wait more than they work. One that hangs fails with its suite. */
export const SUITE = { concurrency: true, timeout: 60_000 };

/** Asks until there is an answer, and fails with `what` when the time is over. */
export async function until<T>(
  check: () => T,
  what = () => `This did not come true: ${check}`,
  patience = PATIENCE,
) {
  const deadline = Date.now() + patience;
  for (;;) {
    const answer = await check();
    if (answer) return answer;
    assert.ok(Date.now() < deadline, what());
    await sleep(5);
  }
}

/** The smallest server: one tool that answers, and hooks that record what they are told. */
export async function startServer(options: Partial<McpHttpServerOptions> = {}) {
  const events: string[] = [];
  const hooks = {
    onSessionStart: ({ id, address }: Session) => void events.push(`start ${id} ${address}`),
    onSessionEnd: ({ id }: Session) => void events.push(`end ${id}`),
  };
  const getServer = () => createTestServer();
  return {
    events,
    ...(await startListening(createMcpHttpServer({ getServer, hooks, ...options }))),
  };
}

/** Lets a server listen on a free port, until the tests end. */
export async function startListening({ server, shutdown }: ReturnType<typeof createMcpHttpServer>) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanups.push(() => {
    server.closeAllConnections();
    return shutdown();
  });
  const { port } = server.address() as AddressInfo;
  return { server, shutdown, url: `http://127.0.0.1:${port}` };
}

/** A server with one tool. Its connect() waits for `then`, after the SDK's has sent the id. */
export function createTestServer(then: () => unknown = ignore) {
  const server = new McpServer({ name: 'test', version: '1.0.0' });
  server.registerTool('hello', {}, () => ({ content: [{ type: 'text', text: 'Hello' }] }));
  const connect = server.connect.bind(server);
  server.connect = async (transport) => {
    await connect(transport);
    await then();
  };
  return server;
}

/** The SDK's own client. */
export async function connectClient(url: string, headers = {}) {
  const client = new Client({ name: 'test', version: '1.0.0' });
  await client.connect(new SSEClientTransport(new URL('/sse', url), { requestInit: { headers } }));
  cleanups.push(() => client.close());
  return client;
}

/** Sends raw bytes. `text` grows while the answer comes, and `ended` says that it is over. */
export function send(url: string, bytes: string) {
  const socket = net.connect(Number(new URL(url).port), '127.0.0.1');
  const answer = { socket, text: '', ended: false };
  socket.setEncoding('utf8').on('data', (chunk) => {
    answer.text += chunk;
  });
  socket.on('error', ignore).on('close', () => {
    answer.ended = true;
  });
  socket.write(bytes);
  cleanups.push(() => socket.destroy());
  return answer;
}

export const get = (path: string, more = '') =>
  `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${more}\r\n`;
export const ping = (id: number) => ({ jsonrpc: '2.0', id, method: 'ping' });

export function post(url: string, message: unknown, more = {}) {
  const headers = { 'content-type': 'application/json', ...more };
  return fetch(url, { method: 'POST', headers, body: JSON.stringify(message) });
}

/** Opens a stream, and waits for the event that says where to POST. */
export async function openStream(url: string, path = '/sse', more = '') {
  const stream = send(url, get(path, more));
  const [, endpoint = ''] = await until(() => {
    assert.doesNotMatch(stream.text, /^HTTP\/1.1 [^2]/);
    return /^data: (.*)$/m.exec(stream.text);
  });
  return Object.assign(stream, {
    endpoint: url + endpoint,
    post: (id: number, more = {}) => post(url + endpoint, ping(id), more),
    replyTo: (id: number) =>
      until(() => stream.text.includes(`{"result":{},"jsonrpc":"2.0","id":${id}}`)),
  });
}

/** Starts server.ts as `npm start` does, but in another folder, and collects what it prints. */
export async function runServer(env: Record<string, string>, envFile = '') {
  const folder = await mkdtemp(join(tmpdir(), 'server-'));
  await writeFile(join(folder, '.env'), envFile);
  // The child ends with this process, even if that is killed: its standard input ends then.
  const endWithParent =
    'data:text/javascript,process.stdin.on("end",()=>process.exit()).resume().unref()';
  const options = ['--import', import.meta.resolve('tsx'), '--import', endWithParent];
  const child = spawn(process.execPath, [...options, join(import.meta.dirname, '../server.ts')], {
    cwd: folder,
    env: { PATH: process.env['PATH'], ...env },
  });
  process.on('exit', () => {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  });
  const run = { child, text: '', exit: once(child, 'close') };
  for (const output of [child.stdout, child.stderr]) {
    output.setEncoding('utf8').on('data', (chunk) => {
      run.text += chunk;
    });
  }
  /** Waits for a line; if the child ends without it, what it has printed is shown. */
  const line = (pattern: RegExp) => {
    const find = () => {
      const found = pattern.exec(run.text);
      assert.ok(found ?? child.exitCode === null, `It ended without ${pattern}: ${run.text}`);
      return found;
    };
    return until(find, () => `There is no ${pattern} in this: ${run.text}`);
  };
  return Object.assign(run, { line });
}

export type Answer = (res: http.ServerResponse) => unknown;

/** A stand-in for a firewall, the settings that lead to it, and the calls that it gets. */
export async function startFirewall(answer: Answer, firewall: http.Server = http.createServer()) {
  const calls: { req: http.IncomingMessage; res: http.ServerResponse; body: string }[] = [];
  firewall.on('request', async (req, res) => {
    calls.push({ req, res, body: await text(req) });
    answer(res);
  });
  firewall.listen(0, '127.0.0.1');
  await once(firewall, 'listening');
  cleanups.push(() => firewall.close().closeAllConnections());
  const { port } = firewall.address() as AddressInfo;
  const env = {
    ...START,
    PANOS_HOSTNAME: `http://127.0.0.1:${port}`,
    PANOS_API_KEY: 'LUFRPT1-secret+key/==',
  };
  return { calls, env, port };
}

export const success = (system: string) => {
  return `<response status="success"><result><system>${system}</system></result></response>`;
};
export const refusal = (code: string, inner: string) => {
  return `<response status = 'error' code = '${code}'>${inner}</response>`;
};
