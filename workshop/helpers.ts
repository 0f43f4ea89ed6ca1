// SPDX-License-Identifier: MIT-0
/** What the exercises and the tests of this folder need of a client, a server and a firewall. */
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';

/** What ends the servers and clients that were started here. */
const cleanups: (() => unknown)[] = [];

export async function cleanUp() {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
}

/** A text that grows, and can be waited for. */
export class Transcript extends EventEmitter {
  /** How long it waits, in milliseconds. */
  static patience = 20_000;
  text = '';

  add(more: string) {
    this.text += more;
    this.emit('more');
  }

  /** Waits until the text matches. */
  async match(pattern: RegExp) {
    const signal = AbortSignal.timeout(Transcript.patience);
    for (;;) {
      const found = pattern.exec(this.text);
      if (found) return found;
      await once(this, 'more', { signal }).catch(() => {
        throw new Error(`it has no ${pattern}: ${this.text || 'it is empty'}`);
      });
    }
  }
}

/** Starts server.ts with these settings, and returns its URL and what it prints. */
export async function startServer(env: NodeJS.ProcessEnv) {
  // The server ends when this process does, even if that is killed: its standard input ends then.
  const guard = 'data:text/javascript,process.stdin.on("end",()=>process.exit()).resume().unref()';
  const file = join(import.meta.dirname, '../server.ts');
  const child = spawn(process.execPath, ['--import', 'tsx', '--import', guard, file], {
    cwd: import.meta.dirname, // A participant's .env does not count.
    env: { PATH: process.env.PATH, PORT: '0', ...env },
  });
  cleanups.push(() => child.kill('SIGKILL'));
  const output = new Transcript();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => output.add(chunk));
  }
  child.on('close', () => output.add('[ended]'));
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

/** Posts a message. */
export function postJson(url: string, message: object, headers = {}, signal?: AbortSignal) {
  const type = { ...headers, 'content-type': 'application/json' };
  return fetch(url, { method: 'POST', headers: type, body: JSON.stringify(message), signal });
}

/** Opens a stream, and waits for the event that says where to POST. */
export async function openStream(url: string, headers = {}) {
  const controller = new AbortController();
  const leave = () => controller.abort();
  cleanups.push(leave);
  const response = await fetch(`${url}/sse`, { headers, signal: controller.signal });
  const stream = new Transcript();
  const sink = new WritableStream({ write: (chunk: string) => stream.add(chunk) });
  response.body
    ?.pipeThrough(new TextDecoderStream())
    .pipeTo(sink)
    .catch(() => undefined);
  const [, path] = await stream.match(/^event: endpoint\ndata: (.*)\n\n/);
  return { stream, leave, post: (message: object) => postJson(url + path, message, headers) };
}

/** The SDK's own client. */
export async function connectClient(url: string) {
  const client = new Client({ name: 'client', version: '1.0.0' });
  cleanups.push(() => client.close());
  await client.connect(new SSEClientTransport(new URL('/sse', url)));
  return client;
}

/** A stand-in for a firewall. It answers with `state.answer`; without one, its callers wait. */
export async function startFirewall() {
  const state = { answer: '' };
  const calls: { form: URLSearchParams; res: http.ServerResponse }[] = [];
  const news = new Transcript();
  const server = http.createServer(async (req, res) => {
    calls.push({ form: new URLSearchParams(await text(req)), res });
    res.on('close', () => news.add('end\n'));
    news.add('call\n');
    if (state.answer) res.end(state.answer);
  });
  const env = { PANOS_HOSTNAME: await listen(server), PANOS_API_KEY: 'key' };
  return { state, calls, news, env };
}
