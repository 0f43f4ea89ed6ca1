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
 * HTTP+SSE is deprecated: build a new server on Streamable HTTP, its successor.
 *
 * @see https://modelcontextprotocol.io/specification/2024-11-05/basic/transports (HTTP with SSE)
 */
import { hash, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, realpathSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { AjvJsonSchemaValidator } from '@modelcontextprotocol/sdk/validation/ajv';
import { Pool } from 'undici'; // Only the firewall needs it.
import * as z from 'zod';

// ---- Sessions --------------------------------------------------------------------------------

/**
 * Makes `handleRequest`, a listener for `createServer()` or a handler for Express routes, and
 * `closeSessions`, which ends all open sessions.
 */
export function createMcpHandler(options: McpHandlerOptions) {
  const { getServer, hooks = {}, allowedHosts = [], token, keepAliveMs = 15_000 } = options;
  const ssePath = withoutSlash(options.ssePath ?? '/sse');
  const messagesPath = withoutSlash(options.messagesPath ?? '/messages');
  const hostnames = [...LOOPBACK, ...allowedHosts].map((host) => new URL(urlOf(host)).hostname);
  const transports = new Map<string, SSEServerTransport>();

  /** The whole life of a session: it begins and ends with its stream, which is the response. */
  async function runSession(req: IncomingMessage, res: ServerResponse) {
    if (res.destroyed) return; // The client left while a middleware before this one was waiting.
    res.setHeader('X-Accel-Buffering', 'no'); // Otherwise nginx holds the events back.
    const transport = new SSEServerTransport(messagesPath, res);
    const { sessionId } = transport;
    // Stored before connect() sends the id: the client may post as soon as it has read it.
    transports.set(sessionId, transport);
    // Clients and proxies give up on a silent stream. A comment keeps it open, and is ignored.
    const keepAlive = setInterval(() => res.write(': keep-alive\n\n'), keepAliveMs);
    // The SDK calls this when the stream ends, whoever ended it.
    transport.onclose = () => {
      transports.delete(sessionId);
      clearInterval(keepAlive);
    };
    const streamEnd = once(res, 'close');
    try {
      // Each session has a server of its own, because an McpServer takes only one transport.
      await getServer().connect(transport);
    } catch (error) {
      await transport.close(); // The client has its id, perhaps, but nobody would answer it.
      throw error;
    }
    const session = { sessionId, address: req.socket.remoteAddress, startedAt: Date.now() };
    await hooks.onSessionStart?.(session);
    await streamEnd;
    await hooks.onSessionEnd?.(session);
  }

  function isAllowed(url: string) {
    return URL.canParse(url) && hostnames.includes(new URL(url).hostname);
  }

  async function route(req: IncomingMessage, res: ServerResponse) {
    const { host, origin, authorization } = req.headers;
    // A web page of another site shows in `Origin` or, after DNS rebinding, in `Host`.
    if (!isAllowed(`http://${host}`) || (origin && !isAllowed(origin))) {
      return reply(res, 403, 'Host or Origin not allowed: use a name in ALLOWED_HOSTS');
    }
    // Comparing hashes takes the same time, however many characters of the token are right.
    if (token && !timingSafeEqual(sha256(`${authorization}`), sha256(`Bearer ${token}`))) {
      res.setHeader('WWW-Authenticate', 'Bearer');
      return reply(res, 401, 'Token missing or wrong: send Authorization: Bearer <token>');
    }
    const [path = '', query] = `${req.url}`.split('?');
    const request = `${req.method} ${withoutSlash(path)}`;
    if (request === `GET ${ssePath}`) return runSession(req, res);
    if (request !== `POST ${messagesPath}`) {
      return reply(res, 404, `Not found: use GET ${ssePath} or POST ${messagesPath}`);
    }
    const sessionId = new URLSearchParams(query).get('sessionId');
    if (!sessionId) {
      return reply(res, 400, `Missing sessionId parameter: post to the URL that ${ssePath} gives`);
    }
    const transport = transports.get(sessionId);
    if (!transport) return reply(res, 404, `Session not found: reconnect to ${ssePath}`);
    await transport.handlePostMessage(req, res);
  }

  function handleRequest(req: IncomingMessage, res: ServerResponse) {
    route(req, res).catch((error) => {
      console.error('Error handling request:', error);
      if (!res.headersSent) reply(res, 500, 'Error handling request');
    });
  }

  async function closeSessions() {
    for (const transport of transports.values()) await transport.close();
  }

  return { handleRequest, closeSessions };
}

export interface McpHandlerOptions {
  /** Makes the server of one session. */
  getServer: () => McpServer;
  hooks?: SessionHooks;
  /** The path of the stream, by default `/sse`. A trailing slash makes no difference. */
  ssePath?: string;
  /** The path that clients post to, by default `/messages`. */
  messagesPath?: string;
  /** The names and addresses that `Host` and `Origin` may have besides loopback's: no ports. */
  allowedHosts?: string[];
  /** Unless this is empty, each request must carry it as `Authorization: Bearer <token>`. */
  token?: string | undefined;
  /** Milliseconds between two comments on a stream, by default 15,000. */
  keepAliveMs?: number;
}

/** Functions that are called when a session starts and ends. Their errors are only logged. */
export interface SessionHooks {
  /** Called when the stream is open and its `endpoint` event has been sent. */
  onSessionStart?(session: Session): void | Promise<void>;
  /** Called once the stream has ended and `onSessionStart` has succeeded. */
  onSessionEnd?(session: Session): void | Promise<void>;
}

export interface Session {
  /** The id that the SDK made. Whoever knows it can post into the session: never log all of it. */
  sessionId: string;
  /** The address of the client or of a proxy in between; undefined if it has already left. */
  address: string | undefined;
  /** In milliseconds, as `Date.now()` counts them. */
  startedAt: number;
}

const LOOPBACK = ['localhost', '127.0.0.1', '::1'];

/** The URL of a host. An IPv6 address stands in brackets there. */
function urlOf(host: string) {
  return `http://${host.includes(':') ? `[${host}]` : host}`;
}

function sha256(text: string) {
  return hash('sha256', text, 'buffer');
}

function withoutSlash(path: string) {
  return path.replace(/\/$/, '');
}

function reply(res: ServerResponse, status: number, text: string) {
  res.writeHead(status, { 'Content-Type': 'text/plain' }).end(`${text}\n`);
}

// ==== Replace from here: the tool, the firewall behind it, and their settings =================

const SAMPLE = `<response status="success"><result><system>
<hostname>sample-firewall</hostname>
<note>Sample data: to ask a real firewall, set PANOS_HOSTNAME and PANOS_API_KEY.</note>
</system></result></response>`;

const showSystemInfo = {
  description: 'Shows the model, serial, versions, addresses and uptime of a Palo Alto firewall.',
  inputSchema: z.strictObject({
    target: z.string().optional().describe('The serial of a firewall that this Panorama manages'),
  }),
  annotations: { readOnlyHint: true },
};

// Shared, because otherwise each McpServer makes one: 18 KB a session.
const jsonSchemaValidator = new AjvJsonSchemaValidator();

/** Makes the server of one session. The SDK sends what a tool throws as an `isError` result. */
export function getServer(firewall?: ReturnType<typeof connectFirewall>) {
  const server = new McpServer({ name: 'mcp-baseline', version: '1.0.0' }, { jsonSchemaValidator });
  server.registerTool('show_system_info', showSystemInfo, async ({ target }, { signal }) => {
    const cmd = '<show><system><info></info></system></show>';
    // The signal fires when the client cancels the call, and when the session ends.
    const text = firewall ? await firewall.ask(cmd, signal, target) : SAMPLE;
    return { content: [{ type: 'text', text }] };
  });
  return server;
}

const toolSettings = z
  .object({
    PANOS_HOSTNAME: z
      .string()
      .transform((name) => (name.includes('://') ? name : `https://${name}`))
      .pipe(z.url({ protocol: /^https?$/, error: 'must be like fw.example or https://fw.example' }))
      .optional(),
    PANOS_API_KEY: z.string().optional(),
  })
  .refine(
    (s) => !s.PANOS_HOSTNAME === !s.PANOS_API_KEY,
    'PANOS_HOSTNAME and PANOS_API_KEY need each other: set both or none',
  );

/**
 * Makes the connections to the firewall or Panorama in the settings, if they name one.
 *
 * @see https://docs.paloaltonetworks.com/pan-os/11-1/pan-os-panorama-api (PAN-OS XML API)
 */
export function connectFirewall(settings: z.infer<typeof toolSettings>) {
  const { PANOS_HOSTNAME, PANOS_API_KEY: key } = settings;
  if (!PANOS_HOSTNAME || !key) return undefined;
  const { host, origin } = new URL(PANOS_HOSTNAME);
  const pool = new Pool(origin, {
    connections: 5, // PAN-OS should get at most five calls at a time. The others wait.
    headersTimeout: 30_000,
    bodyTimeout: 30_000,
    maxResponseSize: 1024 * 1024,
  });
  const headers = { 'content-type': 'application/x-www-form-urlencoded', 'x-pan-key': key };

  return {
    host,
    /** Sends an operational command. Returns the XML of a success, and throws what else comes. */
    async ask(cmd: string, signal: AbortSignal, target?: string) {
      // A form sends an empty string for a field that is left blank.
      const body = new URLSearchParams({ type: 'op', cmd, ...(target && { target }) }).toString();
      try {
        const answer = await pool.request({ path: '/api/', method: 'POST', headers, body, signal });
        const text = await answer.body.text();
        if (SUCCESS.test(text)) return text;
        throw new Error(`HTTP ${answer.statusCode}: ${text}`);
      } catch (error) {
        const { message, code } = error as NodeJS.ErrnoException;
        // The reply may repeat the key. This is why the error has no `cause`.
        const reason = (message || `${code}`).replaceAll(key, '***').replace(/\s+/g, ' ');
        throw new Error(`Asking ${host} failed (${reason.slice(0, 500)}): ${HINT}.`);
      }
    },
  };
}

// Devices differ in quotes and blanks. A reply without its end was cut off.
const SUCCESS =
  /^(?=.*<\/response>\s*$)\s*(<\?xml[^>]*>\s*)?<response\b[^>]*\sstatus\s*=\s*["']success["']/s;
const HINT = 'check PANOS_HOSTNAME, PANOS_API_KEY and its rights, and the certificate';

// ==== Replace to here =========================================================================

// ---- Settings --------------------------------------------------------------------------------

const hostSchema = z
  .string()
  .refine((host) => URL.canParse(urlOf(host)), 'must be a name or address, no http:// or port');
const pathSchema = z.string().regex(/^(\/[\w.~-]+)+\/?$/, 'must be a path such as /mcp/sse');
const settingsSchema = z
  .object({
    HOST: hostSchema.default('127.0.0.1'),
    PORT: z.coerce.number().default(3000),
    SSE_PATH: pathSchema.default('/sse'),
    MESSAGES_PATH: pathSchema.default('/messages'),
    ALLOWED_HOSTS: z
      .string()
      .transform((list) => list.split(/ *, */))
      .pipe(z.array(hostSchema))
      .default([]),
    MCP_TOKEN: z
      .string()
      .regex(/^[!-~]+$/, 'must be ASCII without spaces')
      .optional(),
  })
  .refine((s) => LOOPBACK.includes(s.HOST) || s.MCP_TOKEN, 'HOST lets others in: set MCP_TOKEN')
  .and(toolSettings);

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

// ---- Main ------------------------------------------------------------------------------------

const logHooks: SessionHooks = {
  onSessionStart({ sessionId, address }) {
    console.log(`Session ${sessionId.slice(0, 8)} started from ${address}`);
  },
  onSessionEnd({ sessionId, startedAt }) {
    console.log(`Session ${sessionId.slice(0, 8)} ended after ${Date.now() - startedAt} ms`);
  },
};

async function main() {
  if (existsSync('.env')) process.loadEnvFile(); // Variables that are already set win.
  const settings = readSettings(process.env);
  const { HOST, SSE_PATH, MCP_TOKEN } = settings;
  const firewall = connectFirewall(settings);
  const { handleRequest, closeSessions } = createMcpHandler({
    getServer: () => getServer(firewall),
    hooks: logHooks,
    ssePath: SSE_PATH,
    messagesPath: settings.MESSAGES_PATH,
    allowedHosts: [HOST, ...settings.ALLOWED_HOSTS],
    token: MCP_TOKEN,
  });
  const server = createServer(handleRequest);
  server.listen(settings.PORT, HOST);
  await once(server, 'listening');

  /** Lets the process end by itself, when the last end hook is through. */
  const shutdown = () => {
    server.close();
    setTimeout(() => server.closeAllConnections(), 1000).unref();
    void closeSessions();
  };
  // A Ctrl-C may send two signals, from the terminal and from npm: the second finds no work left.
  process.on('SIGINT', shutdown);
  process.on('SIGTERM', shutdown);

  const { port } = server.address() as AddressInfo;
  // A server can listen on 0.0.0.0 and on ::, but they are no addresses to connect to.
  const url = `${urlOf(HOST.replace(/^(0\.0\.0\.0|::)$/, 'localhost'))}:${port}${SSE_PATH}`;
  const header = MCP_TOKEN ? '-H "Authorization: Bearer <MCP_TOKEN>" ' : '';
  console.log(`Firewall: ${firewall?.host ?? 'none, so the tool answers with sample data'}`);
  console.log(`MCP over HTTP+SSE: ${url} (token ${MCP_TOKEN ? 'required' : 'not required'})`);
  console.log(`Try: curl -N ${header}${url}`);
}

const startedFile = process.argv[1] ?? '';
// Importing this file must not start it. Deployments start it through a symbolic link.
if (existsSync(startedFile) && realpathSync(startedFile) === import.meta.filename) {
  main().catch((error: Error) => {
    console.error(`Cannot start: ${error.message}`);
    process.exitCode = 1;
  });
}
