// SPDX-License-Identifier: MIT
/**
 * An MCP server over HTTP+SSE with one Palo Alto Networks tool: one file to read, copy and teach.
 *
 * A session is one open `GET /sse` stream. The SDK makes its id and names it in the stream's first
 * event; the client POSTs each message to `/messages?sessionId=…`, and the reply comes back on the
 * stream. When the stream ends, so does the session.
 *
 * The steps and the names are those of the SDK's own `examples/server/simpleSseServer.ts`.
 *
 * @see https://modelcontextprotocol.io/specification/2024-11-05/basic/transports (HTTP with SSE)
 */
import assert from 'node:assert/strict';
import { hash, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, realpathSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { AjvJsonSchemaValidator } from '@modelcontextprotocol/sdk/validation/ajv';
import { XMLParser, XMLValidator } from 'fast-xml-parser';
import { Pool } from 'undici';
import * as z from 'zod';

// ---- Configuration ---------------------------------------------------------------------------

const LOOPBACK = /^(localhost|127(\.\d+){3}|\[?::1\]?)$/;
const SCHEME = /^https?:\/\//;

/** The name in `host` or `host:port`, as URL writes it; undefined for anything else. */
function hostnameOf(host: string) {
  // URL alone would take a user, a path or a query as well.
  const isHost = /^[\w.:[\]-]+$/.test(host) && URL.canParse(`http://${host}`);
  return isHost ? new URL(`http://${host}`).hostname : undefined;
}

const hostsSchema = z.string().transform((list) => list.split(/ *, */).map(hostnameOf))
  .refine((names) => names.every(Boolean), 'must be host names with commas between them');
const originSchema = z.string()
  .refine((url) => hostnameOf(url.replace(SCHEME, '')), 'must be a host, host:port or origin')
  .transform((url) => (SCHEME.test(url) ? url : `https://${url}`));
const pathSchema = z.string().regex(/^(\/[\w~-][\w.~-]*)+$/, 'must be a path such as /mcp/sse');
const secretSchema = z.string().regex(/^[!-~]+$/, 'must be printable ASCII without spaces');
const settingsSchema = z.object({
  HOST: z.string().default('127.0.0.1'),
  PORT: z.coerce.number('must be 0 to 65535').int().min(0).max(65535).default(3000),
  SSE_PATH: pathSchema.default('/sse'),
  MESSAGES_PATH: pathSchema.default('/messages'),
  ALLOWED_HOSTS: hostsSchema.default([]),
  MCP_TOKEN: secretSchema.optional(),
  PANOS_HOSTNAME: originSchema.optional(),
  PANOS_API_KEY: secretSchema.optional(),
  PANOS_SKIP_VERIFY_CERTIFICATE: z.stringbool('must be true or false').default(false),
}).refine((all) => all.SSE_PATH !== all.MESSAGES_PATH, 'SSE_PATH and MESSAGES_PATH must differ');

/** The settings, under the names of their environment variables. */
export type Settings = z.infer<typeof settingsSchema>;

/**
 * Reads the settings from environment variables; one that is unset or empty takes its default.
 *
 * @throws an Error whose message names each wrong setting and says what it must be.
 */
export function readSettings(env: Record<string, string | undefined>): Settings {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value?.trim()));
  const { data, error } = settingsSchema.safeParse(given);
  assert(data, error?.issues.map(({ path, message }) => `${path.join()} ${message}`.trim()).join());
  const { HOST, MCP_TOKEN, PANOS_HOSTNAME, PANOS_API_KEY } = data;
  assert(!PANOS_HOSTNAME === !PANOS_API_KEY, 'PANOS_HOSTNAME and PANOS_API_KEY: set both or none');
  assert(MCP_TOKEN || LOOPBACK.test(HOST), 'HOST lets other machines in: set MCP_TOKEN as well');
  return data;
}

// ---- The tool --------------------------------------------------------------------------------

// The fields that every recorded device sends; the addresses and the model are nobody's.
const SAMPLE = {
  hostname: 'sample-firewall', devicename: 'sample-firewall', model: 'PA-SAMPLE',
  family: 'sample', 'platform-family': 'sample', serial: '000000000000', netmask: '255.255.255.0',
  'ip-address': '192.0.2.1', 'default-gateway': '192.0.2.254', 'sw-version': '0.0.0',
  'mac-address': '00:00:5e:00:53:01', time: 'Thu Jan  1 00:00:00 1970', 'app-version': '0-0',
  uptime: '0 days, 0:00:00', 'av-version': '0-0', 'operational-mode': 'normal',
};
const SAMPLE_NOTE = 'Sample data: to ask a real firewall, set PANOS_HOSTNAME and PANOS_API_KEY.';

// Made once, like all that is the same in each session: getServer() runs for every one of them.
const jsonSchemaValidator = new AjvJsonSchemaValidator();
const text = z.string().optional();
const targetSchema = z.string().regex(/^[\da-zA-Z]{1,32}$/, 'must be a serial number').optional()
  .describe('Serial number of a firewall that this Panorama manages, to ask that one instead');
const showSystemInfo = {
  title: 'Show system info',
  description: 'Shows the model, serial, versions, addresses and uptime of a Palo Alto firewall.',
  inputSchema: z.strictObject({ target: targetSchema }),
  outputSchema: z.looseObject(Object.fromEntries(Object.keys(SAMPLE).map((name) => [name, text]))),
  annotations: { readOnlyHint: true, destructiveHint: false, openWorldHint: false },
};

/** Makes one session's server: never shared, since an McpServer has room for one transport. */
function getServer(firewall?: Firewall) {
  const server = new McpServer({ name: 'mcp-baseline', version: '1.0.0' }, { jsonSchemaValidator });
  // What a tool throws, the SDK sends as an `isError` result with the message as its text.
  server.registerTool('show_system_info', showSystemInfo, async ({ target }, { signal }) => {
    const call = new URLSearchParams('type=op&cmd=<show><system><info></info></system></show>');
    if (target) call.set('target', target);
    const system = firewall ? (await askFirewall(firewall, call, signal)).system : SAMPLE;
    assert(system instanceof Object, 'No system information came back: check PANOS_HOSTNAME.');
    const content = [{ type: 'text' as const, text: JSON.stringify(system) }];
    if (!firewall) content.push({ type: 'text', text: SAMPLE_NOTE });
    return { structuredContent: system, content };
  });
  return server;
}

type Firewall = { name: string; apiKey: string; pool: Pool };

/** Opens the connections to the device that the settings name, if they name one. */
function connectFirewall(settings: Settings): Firewall | undefined {
  const { PANOS_HOSTNAME: origin, PANOS_API_KEY: apiKey, PANOS_SKIP_VERIFY_CERTIFICATE } = settings;
  if (!origin || !apiKey) return undefined;
  const connect = { rejectUnauthorized: !PANOS_SKIP_VERIFY_CERTIFICATE };
  // PAN-OS asks for at most five calls at a time; the Pool lets the rest wait.
  const pool = new Pool(origin, { connections: 5, maxResponseSize: 1024 * 1024, connect });
  return { name: new URL(origin).host, apiKey, pool };
}

/** What to do about a failure, by the code that PAN-OS, HTTP, undici, Node or OpenSSL gives it. */
const CURES: [RegExp, string][] = [
  [/^(HTTP )?(15|16|22|401|403)$/, 'check PANOS_API_KEY and the XML API rights of its role'],
  [/^(HTTP )?\d+$/, 'check the target, if one was given, or try again later'],
  [/ALTNAME/, 'set PANOS_HOSTNAME to a name that its certificate holds'],
  [/CERT|SIGNATURE/, 'renew it, or use NODE_EXTRA_CA_CERTS or PANOS_SKIP_VERIFY_CERTIFICATE (lab)'],
  [/^/, 'check PANOS_HOSTNAME and the way to its management interface, or try again later'],
];

/**
 * Sends one call to the PAN-OS XML API and returns the `<result>` of the reply.
 *
 * @throws an Error whose one sentence says what happened and what to do.
 */
async function askFirewall(firewall: Firewall, call: URLSearchParams, signal: AbortSignal) {
  const stop = new AbortController();
  signal.addEventListener('abort', () => stop.abort(signal.reason));
  const timer = setTimeout(() => stop.abort(new Error('no reply within 30 s')), 30_000);
  // A call that waits for its turn in the Pool does not hear its signal: hence the race.
  const stopped = once(stop.signal, 'abort').then(() => Promise.reject(stop.signal.reason));
  return await Promise.race([post(firewall, call, stop.signal), stopped])
    .catch(({ code = '', message }) => {
      const cure = CURES.find(([pattern]) => pattern.test(code))?.[1];
      throw new Error(`Asking ${firewall.name} failed (${(message || code).trim()}): ${cure}.`);
    })
    .finally(() => clearTimeout(timer));
}

// Values are text as sent: a serial keeps its leading zeros, and a version is not a number.
const xmlOptions = { ignoreAttributes: false, attributeNamePrefix: '', parseTagValue: false,
  tagValueProcessor: (_tag: string, value: string) => value.trim() };
const xmlParser = new XMLParser(xmlOptions);
// Resolves &#233; and the like too; it takes longer, as it builds a table for each reply.
const entityParser = new XMLParser({ ...xmlOptions, htmlEntities: true });

async function post({ pool, apiKey }: Firewall, call: URLSearchParams, signal: AbortSignal) {
  const headers = { 'content-type': 'application/x-www-form-urlencoded', 'x-pan-key': apiKey };
  const request = { path: '/api/', method: 'POST', headers, body: `${call}`, signal } as const;
  const { statusCode, body } = await pool.request(request);
  const xml = (await body.text()).trim();
  // PAN-OS sends no DOCTYPE: one is an HTML page's, or declares entities to expand.
  const isXml = !xml.includes('<!DOCTYPE') && XMLValidator.validate(xml) === true;
  const parser = xml.includes('&#') ? entityParser : xmlParser;
  const response = isXml ? parser.parse(xml).response : undefined;
  assert(response, `HTTP ${statusCode} without PAN-OS XML`);
  if (response.status === 'success') return response.result || {};
  const code = response.code || `HTTP ${statusCode}`;
  const message = textOf(response.msg ?? response.result).replaceAll(apiKey, '***').slice(0, 500);
  throw Object.assign(new Error(`status ${response.status}, code ${code}: ${message}`), { code });
}

const textOf = (node: unknown): string =>
  node instanceof Object ? Object.values(node).map(textOf).join(' ') : String(node ?? '');

// ---- Sessions --------------------------------------------------------------------------------

/**
 * A session, as the hooks see it: the id that the SDK made, and the address that the stream's
 * connection comes from. Whoever knows the `id` can post into the session: never log all of it.
 */
export type Session = { readonly id: string; readonly startedAt: Date; readonly address?: string };

type SessionHook = (session: Session) => unknown;

/**
 * `onSessionStart` is called when a stream is open and its `endpoint` event is out, `onSessionEnd`
 * once after each start, whichever side ends it. Both may be async; if one fails, that is logged.
 */
export type SessionHooks = { onSessionStart?: SessionHook; onSessionEnd?: SessionHook };

/**
 * Makes the HTTP server, which serves once its `listen()` is called.
 *
 * @param options.settings from `readSettings`; by default, all of them have their defaults
 * @param options.hooks what to call when a session starts and ends; by default, nothing
 * @returns an `http.Server`. Its `close()` alone would wait for the open streams for ever:
 *   `closeAllConnections()` ends them, and with them the sessions.
 */
export function createMcpHttpServer(options: { settings?: Settings; hooks?: SessionHooks } = {}) {
  const { settings = readSettings({}), hooks = {} } = options;
  const { SSE_PATH, MESSAGES_PATH, ALLOWED_HOSTS, MCP_TOKEN } = settings;
  const firewall = connectFirewall(settings);
  const transports = new Map<string, SSEServerTransport>();

  async function openSession(req: IncomingMessage, res: ServerResponse) {
    // No 'close' would ever end this session: the client has gone, or has pipelined this GET.
    if (!res.socket || res.socket.destroyed) return res.destroy();
    const transport = new SSEServerTransport(MESSAGES_PATH, res);
    const sessionId = transport.sessionId;
    transports.set(sessionId, transport);

    const session = { id: sessionId, startedAt: new Date(), address: req.socket.remoteAddress };
    let keepAlive: NodeJS.Timeout | undefined;
    transport.onclose = () => {
      // The SDK calls this for close() and again for the response's end: the first one counts.
      if (!transports.delete(sessionId) || !keepAlive) return;
      clearInterval(keepAlive);
      callHook('onSessionEnd', session);
    };
    res.once('close', () => transport.onclose?.()); // ends the session if connect() fails below
    res.setHeader('X-Accel-Buffering', 'no'); // or nginx would hold the events back
    await getServer(firewall).connect(transport);

    if (!transports.has(sessionId)) return;
    keepAlive = setInterval(() => {
      if (res.writableLength > 1024 * 1024) res.destroy();
      else res.write(': keep-alive\n\n');
    }, 15_000);
    callHook('onSessionStart', session);
  }

  async function postMessage(req: IncomingMessage, res: ServerResponse, query: string) {
    const sessionId = new URLSearchParams(query).get('sessionId');
    if (!sessionId) return reply(res, 400, `Missing sessionId parameter: ${SSE_PATH} names one`);
    const transport = transports.get(sessionId);
    if (!transport) return reply(res, 404, `Session not found: reconnect to ${SSE_PATH}`);
    await transport.handlePostMessage(req, res);
  }

  const callHook = (name: keyof SessionHooks, session: Session) =>
    Promise.resolve().then(() => hooks[name]?.(session))
      .catch((error) => console.error(`${name} failed:`, error));

  // ---- HTTP ----------------------------------------------------------------------------------

  const isAllowed = (name = '') => LOOPBACK.test(name) || ALLOWED_HOSTS.includes(name);
  const methods = new Map([[SSE_PATH, 'GET'], [MESSAGES_PATH, 'POST']]);

  async function handleRequest(req: IncomingMessage, res: ServerResponse) {
    const { host = '', origin = host, authorization = '' } = req.headers;
    const isSafe = [host, origin.replace(SCHEME, '')].map(hostnameOf).every(isAllowed);
    if (!isSafe) return reply(res, 403, 'Host or Origin not allowed: add it to ALLOWED_HOSTS');
    const [path = '', query = ''] = (req.url ?? '').split('?');
    const method = methods.get(path.replace(/\/$/, ''));
    if (!method) return reply(res, 404, `Not found: GET ${SSE_PATH} or POST ${MESSAGES_PATH}`);
    const bearer = authorization.replace(/^bearer/i, 'Bearer');
    const isKnown = !MCP_TOKEN || timingSafeEqual(sha256(bearer), sha256(`Bearer ${MCP_TOKEN}`));
    if (!isKnown) return reply(res, 401, 'Bearer token needed', { 'WWW-Authenticate': 'Bearer' });
    if (req.method !== method) return reply(res, 405, `Use ${method} ${path}`, { Allow: method });
    return method === 'GET' ? openSession(req, res) : postMessage(req, res, query);
  }

  return createServer({ requestTimeout: 30_000, connectionsCheckingInterval: 1000 }, (req, res) => {
    handleRequest(req, res).catch((error) => {
      console.error('Error handling request:', error);
      if (!res.headersSent) reply(res, 500, 'Error handling request');
    });
  }).on('close', () => firewall?.pool.destroy());
}

const sha256 = (text: string) => hash('sha256', text, 'buffer');

const reply = (res: ServerResponse, status: number, text: string, headers = {}) =>
  res.writeHead(status, { 'Content-Type': 'text/plain', ...headers }).end(`${text}\n`);

// ---- Main ------------------------------------------------------------------------------------

const log = ({ id }: Session, event: string) => console.log(`Session ${id.slice(0, 8)} ${event}`);
const logHooks: SessionHooks = {
  onSessionStart: (session) => log(session, `started from ${session.address}`),
  onSessionEnd: (session) => log(session, `ended after ${Date.now() - +session.startedAt} ms`),
};

async function main() {
  const envFile = `${import.meta.dirname}/.env`;
  if (existsSync(envFile)) process.loadEnvFile(envFile);
  const settings = readSettings(process.env);
  const { HOST, PORT, SSE_PATH, MESSAGES_PATH, MCP_TOKEN, PANOS_HOSTNAME } = settings;
  const server = createMcpHttpServer({ settings, hooks: logHooks });
  await once(server.listen(PORT, HOST), 'listening');

  const stop = () => {
    server.close().closeAllConnections();
    setTimeout(() => process.exit(), 500).unref(); // a hook that takes longer is left behind
  };
  process.once('SIGINT', stop).once('SIGTERM', stop);

  const { port } = server.address() as { port: number };
  const name = /^(0\.0\.0\.0|::)$/.test(HOST) ? 'localhost' : HOST;
  const url = `http://${name.includes(':') ? `[${name}]` : name}:${port}`;
  const auth = MCP_TOKEN ? '-H "Authorization: Bearer <MCP_TOKEN>" ' : '';
  console.log(`MCP over HTTP+SSE: GET ${url}${SSE_PATH}, POST ${url}${MESSAGES_PATH}`);
  console.log(`Firewall: ${PANOS_HOSTNAME ?? 'none, so sample data (set PANOS_HOSTNAME)'}`);
  if (settings.PANOS_SKIP_VERIFY_CERTIFICATE) console.warn('Warning: certificates are not checked');
  console.log(`Try: curl -N ${auth}${url}${SSE_PATH}`);
}

const [, script = ''] = process.argv;
if (existsSync(script) && realpathSync(script) === import.meta.filename) main().catch((error) => {
  console.error(`Cannot start: ${error.message}`);
  process.exitCode = 1;
});
