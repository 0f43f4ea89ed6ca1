// SPDX-License-Identifier: MIT-0
/**
 * An MCP server over HTTP+SSE in one file, made for reading, copying and teaching.
 *
 * MCP (Model Context Protocol) lets an AI application, the client, call the tools of a server.
 * Both send JSON-RPC messages. A session is one open `GET /sse` stream: the SDK makes its id, and
 * the stream's first event, `endpoint`, tells the client where to POST: `/messages?sessionId=…`.
 * Each POST is answered only with 202, and the reply to its message comes on the stream. When
 * the stream ends, its session ends too, and a client that comes back opens a new stream.
 *
 * The steps and the names are those of the SDK's example, `examples/server/simpleSseServer.ts`.
 *
 * HTTP+SSE is deprecated: build a new server on Streamable HTTP, its successor.
 *
 * @see https://modelcontextprotocol.io/specification/2024-11-05/basic/transports (HTTP with SSE)
 */
import { hash, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { parseEnv } from 'node:util';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import * as z from 'zod';

// For the tool and its firewall. The validator is worth keeping for a tool of your own.
import { AjvJsonSchemaValidator } from '@modelcontextprotocol/sdk/validation/ajv';
import { XMLParser } from 'fast-xml-parser';
import { Pool } from 'undici';

// ---- Sessions --------------------------------------------------------------------------------

/**
 * Makes the HTTP server, which serves once its `listen()` is called.
 *
 * @returns the `http.Server` as `server`, and `shutdown()`, which stops listening, ends the open
 *   sessions, and resolves when all connections are closed and all end hooks have finished
 */
export function createMcpHttpServer(options: McpHttpServerOptions) {
  const { getServer, hooks = {}, allowedHosts = [], token } = options;
  const { keepAliveMs = 15_000, maxSessions = 10_000 } = options;
  const ssePath = withoutSlash(options.ssePath ?? '/sse');
  const messagesPath = withoutSlash(options.messagesPath ?? '/messages');
  const usage = `use GET ${ssePath} or POST ${messagesPath}`;
  const transports = new Map<string, SSEServerTransport>();
  const running = new Set<Promise<void>>();

  /** The whole life of a session: it begins and ends with its stream, which is the response. */
  async function runSession(req: IncomingMessage, res: ServerResponse) {
    const transport = new SSEServerTransport(messagesPath, res);
    const { sessionId } = transport;
    // Stored before connect() sends the id: the client may post as soon as it has read it.
    transports.set(sessionId, transport);
    const session = { id: sessionId, address: req.socket.remoteAddress, startedAt: new Date() };
    // Clients skip a comment, but they and proxies give up on a stream that stays silent.
    const keepAlive = setInterval(() => res.write(': keep-alive\n\n'), keepAliveMs);
    const ended = new Promise<void>((resolve) => {
      // The SDK calls this whichever side ends the stream, and once more after close().
      transport.onclose = () => {
        transports.delete(sessionId);
        clearInterval(keepAlive);
        resolve();
      };
    });
    try {
      // Each session has a server of its own, because an McpServer takes only one transport.
      await getServer().connect(transport);
    } catch (error) {
      await transport.close(); // The stream may have begun, and no server would answer on it.
      throw error;
    }
    await callHook('onSessionStart', session);
    await ended;
    await callHook('onSessionEnd', session);
  }

  async function callHook(name: keyof SessionHooks, session: Session) {
    try {
      await hooks[name]?.(session);
    } catch (error) {
      console.error(`${name} failed:`, error);
    }
  }

  async function openSession(req: IncomingMessage, res: ServerResponse) {
    // A pipelined request gets its socket in its turn. Before, nothing would end its session.
    if (!res.socket) await once(res, 'socket');
    if (transports.size >= maxSessions) {
      return reply(res, 503, `All ${maxSessions} sessions are in use: try again later`);
    }
    res.setHeader('X-Accel-Buffering', 'no'); // Otherwise nginx holds the events back.
    const run = runSession(req, res);
    running.add(run);
    await run.finally(() => running.delete(run));
  }

  async function postMessage(req: IncomingMessage, res: ServerResponse, sessionId: string | null) {
    if (!sessionId) {
      return reply(res, 400, `Missing sessionId parameter: post to the URL that ${ssePath} gives`);
    }
    const transport = transports.get(sessionId);
    if (!transport) return reply(res, 404, `Session not found: reconnect to ${ssePath}`);
    if (Number(req.headers['content-length']) > MAX_MESSAGE_BYTES) {
      return reply(res, 413, `Message too large: send at most ${MAX_MESSAGE_BYTES} bytes`);
    }
    await transport.handlePostMessage(req, res);
  }

  async function handleRequest(req: IncomingMessage, res: ServerResponse) {
    try {
      if (isForeign(req, allowedHosts)) {
        return reply(res, 403, 'Host, Origin or site not allowed: use an allowed host');
      }
      // A target may be a whole URL (RFC 9112, section 3.2.2). Two leading slashes name a host.
      const target = new URL(String(req.url).replace(/^[/\\]+/, '/'), 'http://localhost');
      const path = withoutSlash(target.pathname);
      if (path !== ssePath && path !== messagesPath) return reply(res, 404, `Not found: ${usage}`);
      if (token && !isAuthorized(req, token)) {
        return reply(res, 401, 'Token missing or wrong: send Authorization: Bearer <token>', {
          'WWW-Authenticate': 'Bearer',
        });
      }
      const method = path === ssePath ? 'GET' : 'POST';
      if (req.method !== method) {
        return reply(res, 405, `Method not allowed: ${usage}`, { Allow: method });
      }
      if (path === ssePath) await openSession(req, res);
      else await postMessage(req, res, target.searchParams.get('sessionId'));
    } catch (error) {
      console.error('Error handling request:', error);
      if (!res.headersSent) reply(res, 500, 'Error handling request');
    }
  }

  async function shutdown() {
    const closed = new Promise((resolve) => server.close(resolve));
    for (const transport of transports.values()) await transport.close();
    setTimeout(() => server.closeAllConnections(), 500); // Cuts off whoever stays.
    // A request that was under way may still open a session, so the sessions come last.
    await closed;
    await Promise.allSettled(running);
  }

  const server = createServer(
    // AWS's load balancers keep a connection for 60 s, and must be the first to close it.
    { requestTimeout: 30_000, connectionsCheckingInterval: 1000, keepAliveTimeout: 65_000 },
    (req, res) => void handleRequest(req, res),
  );
  server.timeout = 60_000; // Ends a connection on which nothing moves: its client reads no more.
  return { server, shutdown };
}

/** A session, as the hooks see it. */
export interface Session {
  /** The id that the SDK made. Whoever knows it can post into the session: never log all of it. */
  id: string;
  /** The address of the client, or of the proxy before it; undefined if it has already left. */
  address: string | undefined;
  startedAt: Date;
}

/** Functions that are called when a session starts and ends. A failure is only logged. */
export interface SessionHooks {
  /** Called when the stream is open and its `endpoint` event has been sent. */
  onSessionStart?(session: Session): void | Promise<void>;
  /** Called once for each start, after the promise of `onSessionStart` has settled. */
  onSessionEnd?(session: Session): void | Promise<void>;
}

export interface McpHttpServerOptions {
  /** Makes the server of one session: an McpServer can be connected to only one transport. */
  getServer: () => McpServer;
  hooks?: SessionHooks;
  /** The path of the stream, by default `/sse`. A trailing slash makes no difference. */
  ssePath?: string;
  /** The path that clients post to, by default `/messages`. It must differ from `ssePath`. */
  messagesPath?: string;
  /** The names that `Host` and `Origin` may have besides loopback's: in lower case, no ports. */
  allowedHosts?: string[];
  /** Unless empty, each request must carry it, as `Authorization: Bearer <token>`. */
  token?: string | undefined;
  /** Milliseconds between two comments on a stream, by default 15,000; well below 60,000. */
  keepAliveMs?: number;
  /** How many sessions may be open at the same time, by default 10,000. */
  maxSessions?: number;
}

// ---- HTTP ------------------------------------------------------------------------------------

const MAX_MESSAGE_BYTES = 1024 * 1024; // The SDK stops a message of unknown length at 4 MB.
const LOOPBACK = /^(localhost|\[?::1\]?|127(\.\d+){3})$/;

/** Whether another site's web page may have sent this, if only by DNS rebinding (`Host`). */
function isForeign({ headers }: IncomingMessage, allowedHosts: string[]) {
  if (headers['sec-fetch-site'] === 'cross-site') return true;
  const { host = '', origin = 'http://localhost' } = headers;
  return [host, origin].some((authority) => {
    const name = authority.toLowerCase().replace(/^https?:\/\/|:\d+$/g, '');
    return !LOOPBACK.test(name) && !allowedHosts.includes(name);
  });
}

const secretSchema = z.string().regex(/^[!-~]+$/, 'must be printable ASCII without spaces');

function isAuthorized(req: IncomingMessage, token: string) {
  const [, given = ''] = /^bearer +(\S+)$/i.exec(req.headers.authorization ?? '') ?? [];
  // Comparing hashes takes the same time, however many characters of the token are right.
  return timingSafeEqual(hash('sha256', given, 'buffer'), hash('sha256', token, 'buffer'));
}

function withoutSlash(path: string) {
  return path.replace(/\/$/, '');
}

function reply(res: ServerResponse, status: number, text: string, headers = {}) {
  res.writeHead(status, headers).end(`${text}\n`);
}

// ==== Replace from here: the tool, the firewall behind it, and their settings =================
// Then replace `firewallSettings` in the settings, and `firewall` in three lines of `main()`.
// What a device expects: https://docs.paloaltonetworks.com/pan-os/11-1/pan-os-panorama-api

const SAMPLE = {
  hostname: 'sample-firewall',
  note: 'Sample data: to ask a real firewall, set PANOS_HOSTNAME and PANOS_API_KEY.',
};

// Shared, because each costs 20 KB. It keeps every schema, so make no schemas in getServer().
const jsonSchemaValidator = new AjvJsonSchemaValidator();
// A client with a form for the arguments sends an empty string for a field left blank.
const serialSchema = z.string().regex(/^[\da-zA-Z]{0,32}$/, 'must be a serial number');
const showSystemInfo = {
  description: 'Shows the model, serial, versions, addresses and uptime of a Palo Alto firewall.',
  inputSchema: z.strictObject({
    target: serialSchema.optional().describe('The firewall to ask through this Panorama'),
  }),
  outputSchema: z.looseObject({}), // Models differ in their fields, and some repeat a field.
  annotations: { readOnlyHint: true },
};

/** Makes the server of one session. The SDK sends what a tool throws as an `isError` result. */
export function getServer(firewall?: Firewall) {
  const server = new McpServer({ name: 'mcp-baseline', version: '1.0.0' }, { jsonSchemaValidator });
  server.registerTool('show_system_info', showSystemInfo, async ({ target }, { signal }) => {
    // The signal fires when the client cancels the call, and when the session ends.
    const system = firewall ? await askSystemInfo(firewall, signal, target) : SAMPLE;
    return { structuredContent: system, content: [{ type: 'text', text: JSON.stringify(system) }] };
  });
  return server;
}

const resultSchema = z.object({ system: z.looseObject({}) });

async function askSystemInfo(firewall: Firewall, signal: AbortSignal, target?: string) {
  const cmd = '<show><system><info></info></system></show>';
  const result = await firewall.ask({ type: 'op', cmd, ...(target && { target }) }, signal);
  const { data } = resultSchema.safeParse(result);
  if (!data) throw firewall.failure('no system information in the reply', ANSWER_HINT);
  return data.system;
}

const firewallSettings = z
  .object({
    PANOS_HOSTNAME: z
      .string()
      .transform((name) => (name.includes('://') ? name : `https://${name}`))
      .pipe(z.url('must be like fw.example or https://fw.example'))
      .optional(),
    PANOS_API_KEY: secretSchema.optional(),
    PANOS_SKIP_VERIFY_CERTIFICATE: z.stringbool().default(false),
  })
  .refine(
    (s) => !s.PANOS_HOSTNAME === !s.PANOS_API_KEY,
    'PANOS_HOSTNAME and PANOS_API_KEY need each other: set both or none',
  );

const ANSWER_HINT = 'check PANOS_HOSTNAME, the network, and the certificate (NODE_EXTRA_CA_CERTS)';
const REFUSAL_HINT = 'check PANOS_API_KEY, the XML API rights of its role, and the target if any';

type Firewall = NonNullable<ReturnType<typeof connectFirewall>>;

/** Makes the connections to the device in the settings; returns undefined if they name none. */
export function connectFirewall(settings: z.infer<typeof firewallSettings>) {
  const { PANOS_HOSTNAME, PANOS_API_KEY, PANOS_SKIP_VERIFY_CERTIFICATE } = settings;
  if (!PANOS_HOSTNAME || !PANOS_API_KEY) return undefined;
  const { host, origin } = new URL(PANOS_HOSTNAME);
  const pool = new Pool(origin, {
    connections: 5, // PAN-OS should get at most five calls at a time. The others wait.
    headersTimeout: 30_000,
    bodyTimeout: 30_000,
    maxResponseSize: 1024 * 1024,
    connect: { rejectUnauthorized: !PANOS_SKIP_VERIFY_CERTIFICATE },
  });
  const headers = {
    'content-type': 'application/x-www-form-urlencoded',
    'x-pan-key': PANOS_API_KEY,
  };

  /** Sends one call, and returns the `<result>` of the reply. Its errors say what to check. */
  async function ask(call: Record<string, string>, signal: AbortSignal) {
    const { statusCode, text } = await post(call, signal).catch((error) => {
      throw failure(error.message || error.code, ANSWER_HINT);
    });
    const response = parseResponse(text);
    if (!response) {
      const hint = [401, 403].includes(statusCode) ? REFUSAL_HINT : ANSWER_HINT;
      throw failure(`HTTP ${statusCode} without a PAN-OS reply`, hint);
    }
    const { status, code, msg, result } = response;
    if (status === 'success') return result;
    const reason = `HTTP ${statusCode}, code ${textOf(code) || 'none'}: ${textOf(msg || result)}`;
    throw failure(reason, REFUSAL_HINT);
  }

  async function post(call: Record<string, string>, signal: AbortSignal) {
    const form = new URLSearchParams(call).toString();
    const send = () => pool.request({ path: '/api/', method: 'POST', headers, body: form, signal });
    const { statusCode, body } = await send().catch((error) => {
      // A device may close an idle connection just as a call is sent. Repeat only calls that read.
      if (['ECONNRESET', 'EPIPE', 'UND_ERR_SOCKET'].includes(error.code)) return send();
      throw error;
    });
    const text = await body.text().catch((error) => {
      throw new Error(`the reply broke off: ${error.message}`);
    });
    return { statusCode, text };
  }

  /** Says what happened and what to check, but never the key, which a device may repeat. */
  function failure(reason: string, hint: string) {
    const line = reason.replaceAll(headers['x-pan-key'], '***').replace(/\s+/g, ' ');
    return new Error(`Asking ${host} failed (${line.slice(0, 500)}): ${hint}.`);
  }

  return { host, ask, failure };
}

const parser = new XMLParser({
  ignoreAttributes: false,
  attributeNamePrefix: '',
  parseTagValue: false, // Each value stays the text that was sent: a serial keeps its zeros.
  htmlEntities: true, // Otherwise numeric references such as &#233; stay as they are.
});
const replySchema = z.object({ response: z.looseObject({}) });

/** The `<response>` of a reply; undefined if the reply is anything else, or was cut off. */
function parseResponse(text: string) {
  try {
    return replySchema.parse(parser.parse(text.trim(), true)).response;
  } catch {
    return undefined;
  }
}

/** The text of a message, which PAN-OS wraps in one or several elements. */
function textOf(node: unknown): string {
  if (typeof node === 'string') return node.trim();
  return Object.values(node ?? {})
    .map(textOf)
    .join(' ');
}

// ==== Replace to here =========================================================================

// ---- Settings --------------------------------------------------------------------------------

const pathSchema = z.string().regex(/^(\/[\w~-][\w.~-]*)+$/, 'must be a path such as /mcp/sse');
const hostsSchema = z.string().regex(/^[\w.-]+( *, *[\w.-]+)*$/, 'must be host names, no ports');
const settingsSchema = z
  .object({
    HOST: z.string().default('127.0.0.1'),
    PORT: z.coerce.number().min(0).max(65535).default(3000),
    SSE_PATH: pathSchema.default('/sse'),
    MESSAGES_PATH: pathSchema.default('/messages'),
    ALLOWED_HOSTS: hostsSchema.transform((list) => list.toLowerCase().split(/ *, */)).default([]),
    MCP_TOKEN: secretSchema.optional(),
  })
  .refine((s) => LOOPBACK.test(s.HOST) || s.MCP_TOKEN, 'HOST lets others in: set MCP_TOKEN as well')
  .refine((s) => s.SSE_PATH !== s.MESSAGES_PATH, 'SSE_PATH and MESSAGES_PATH must differ')
  .and(firewallSettings);

/**
 * Reads the settings from environment variables. One that is unset or blank takes its default.
 *
 * @throws an Error whose message names each wrong setting, and says what it must be
 */
export function readSettings(env: NodeJS.ProcessEnv) {
  const given = Object.entries(env).filter(([, value]) => value?.trim());
  const { data, error } = settingsSchema.safeParse(Object.fromEntries(given));
  if (error) throw new Error(z.prettifyError(error)); // Shows no value: some are secrets.
  return data;
}

/** Reads `.env` in the working directory, if there is one. */
function readEnvFile() {
  if (!existsSync('.env')) return {};
  // Blanks at a line's end can make parseEnv() lose the next setting (nodejs/node#56686).
  return parseEnv(readFileSync('.env', 'utf8').replace(/\s+$/gm, ''));
}

// ---- Main ------------------------------------------------------------------------------------

const logHooks: SessionHooks = {
  onSessionStart({ id, address }) {
    console.log(`Session ${id.slice(0, 8)} started from ${address}`);
  },
  onSessionEnd({ id, startedAt }) {
    console.log(`Session ${id.slice(0, 8)} ended after ${Date.now() - startedAt.getTime()} ms`);
  },
};

/** Runs the server until a signal ends it. Its settings come from the environment and `.env`. */
export async function main() {
  // A log reader that goes away, as in `npm start | head -1`, must not end the sessions.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
  try {
    const settings = readSettings({ ...readEnvFile(), ...process.env });
    const firewall = connectFirewall(settings);
    const { server, shutdown } = createMcpHttpServer({
      getServer: () => getServer(firewall),
      hooks: logHooks,
      ssePath: settings.SSE_PATH,
      messagesPath: settings.MESSAGES_PATH,
      allowedHosts: [...settings.ALLOWED_HOSTS, settings.HOST],
      token: settings.MCP_TOKEN,
    });
    server.listen(settings.PORT, settings.HOST);
    await once(server, 'listening');
    console.log(`Firewall: ${firewall?.host ?? 'none, so the tool answers with sample data'}`);
    logStart(settings, server.address() as AddressInfo);
    await stopSignal();
    setTimeout(() => process.exit(), 5_000); // A hook may hang.
    await shutdown();
    process.exit();
  } catch (error) {
    console.error(`Cannot start: ${(error as Error).message}`);
    process.exitCode = 1;
  }
}

/** Resolves at the first signal. A Ctrl-C may send two, from the terminal and from npm. */
function stopSignal() {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, resolve);
  });
}

function logStart(settings: ReturnType<typeof readSettings>, { port }: AddressInfo) {
  const { HOST, SSE_PATH, MESSAGES_PATH, MCP_TOKEN } = settings;
  // 0.0.0.0 is no address to connect to, and an IPv6 address needs brackets in a URL.
  const url = `http://${/:|^0\.0\.0\.0$/.test(HOST) ? 'localhost' : HOST}:${port}`;
  const header = MCP_TOKEN ? '-H "Authorization: Bearer <MCP_TOKEN>" ' : '';
  console.log(`MCP over HTTP+SSE: GET ${url}${SSE_PATH}, POST ${url}${MESSAGES_PATH}`);
  console.log(`Token: ${MCP_TOKEN ? 'required' : 'not required'}`);
  console.log(`Try: curl -N ${header}${url}${SSE_PATH}`);
}

const startedFile = process.argv[1] ?? '';
// Importing this file must not start it. Node's resolver knows which file `node .` starts.
if (existsSync(startedFile)) {
  const { resolve } = createRequire(import.meta.url);
  if (resolve(startedFile) === import.meta.filename) await main();
}
