// SPDX-License-Identifier: MIT-0
/** What the exercises and the tests of this folder need of a server, a client and a firewall. */
import { exec, spawn } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { promisify } from 'node:util';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { until } from './doctor.ts';

/** What ends that was started here. */
const cleanups: (() => unknown)[] = [];

export async function cleanUp() {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
}

/** How long something that must happen may take. */
export const patience = { ms: 20_000 };

/** A text that grows, and can be waited for. */
export class Transcript {
  text = '';

  constructor(...sources: Readable[]) {
    for (const source of sources) {
      source.setEncoding('utf8').on('data', (chunk: string) => (this.text += chunk));
      source.on('error', () => undefined);
    }
  }

  async match(pattern: RegExp) {
    const found = await until(() => pattern.exec(this.text), 30_000);
    if (!found) throw new Error(`This has no ${pattern}: ${this.text || '(nothing)'}`);
    return found;
  }
}

/**
 * With these, a child ends when this process does, even if that is killed: its input ends then.
 * Children of its own must not read that input, so they get none of these.
 */
export const CHILD = `--import=data:text/javascript,${encodeURIComponent(`
delete process.env.NODE_OPTIONS;
process.stdin.on('end', () => process.exit()).resume().unref();
`)} --import=tsx`;

/** Runs a command, and returns what it prints. */
export async function outputOf(command: string, cwd = join(import.meta.dirname, '..')) {
  const env = { ...process.env, NODE_OPTIONS: CHILD, NODE_TEST_CONTEXT: undefined };
  const { stdout } = await promisify(exec)(command, { cwd, env }).catch((error) => error);
  return stdout;
}

/** Starts a server.ts with these settings, and returns its URL and what it prints. */
export async function startServer(env: NodeJS.ProcessEnv, folder = '..') {
  const child = spawn(process.execPath, [join(folder, 'server.ts')], {
    cwd: import.meta.dirname, // A participant's .env does not count.
    env: { PATH: process.env.PATH, NODE_OPTIONS: CHILD, PORT: '0', ...env },
  });
  cleanups.push(() => child.kill('SIGKILL'));
  const output = new Transcript(child.stdout, child.stderr);
  child.on('close', () => (output.text += '[ended]'));
  const [, url] = await output.match(/^MCP over HTTP\+SSE: (http:\S+)\/\w+ [^]*Try|\[ended\]/m);
  if (!url) throw new Error(`server.ts does not start: ${output.text}`);
  return { url, output };
}

/** Lets a server listen on a free port, and returns its URL. */
export async function listen(server: http.Server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanups.push(() => server.close().closeAllConnections());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Opens a stream, and waits for the event that says where to POST. */
export async function openStream(url: string, headers = {}) {
  const request = http.get(`${url}/sse`, { headers, agent: false });
  const leave = () => request.destroy();
  cleanups.push(leave);
  const [response] = await once(request, 'response');
  const stream = new Transcript(response);
  const [, path] = await stream.match(/^event: endpoint\ndata: (.*)\n\n/);
  return { stream, leave, endpoint: url + path };
}

/** Calls a tool with a client of its own, the SDK's. What fails is an answer, too. */
export function callTool(url: string, name: string, headers = {}) {
  const client = new Client({ name: 'client', version: '1.0.0' });
  const leave = () => client.close();
  cleanups.push(leave);
  const controller = new AbortController();
  const Kind = url.endsWith('/sse') ? SSEClientTransport : StreamableHTTPClientTransport;
  const transport = new Kind(new URL(url), { requestInit: { headers } });
  const answer = client
    .connect(transport)
    .then(() =>
      client.callTool({ name }, undefined, { timeout: patience.ms, signal: controller.signal }),
    )
    .then(({ content }) => content)
    .catch(({ message }: Error) => message);
  return { answer, leave, cancel: () => controller.abort() };
}

export type FirewallCall = { cmd: string; res: http.ServerResponse };

/** A stand-in for a firewall. Whoever takes one of its calls answers it. */
export async function startFirewall() {
  const calls: FirewallCall[] = [];
  const server = http.createServer(async (req, res) => {
    calls.push({ cmd: `${new URLSearchParams(await text(req)).get('cmd')}`, res });
  });
  return { calls, env: { PANOS_HOSTNAME: await listen(server), PANOS_API_KEY: 'key' } };
}
