// SPDX-License-Identifier: MIT-0
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, describe, mock, test } from 'node:test';
import { getServer, readSettings } from '../server.ts';
import { FAULTS } from './faults.ts';
import { adviceOn } from './doctor.ts';
import {
  cleanups,
  cleanUp,
  ignore,
  logged,
  openStream,
  post,
  runServer,
  START,
  startServer,
  SUITE,
  until,
} from './helpers.ts';

mock.method(console, 'error', (...parts: unknown[]) => void logged.push(parts.join(' ')));
after(cleanUp, { timeout: 10_000 });

// ==== README ==================================================================================

const fileText = (name: string) => readFileSync(join(import.meta.dirname, '..', name), 'utf8');

describe('README', SUITE, () => {
  const page = fileText('README.md');
  const code = fileText('server.ts');
  const { scripts } = JSON.parse(fileText('package.json'));
  const block = (info: string) => {
    const [, rest = ''] = page.split(`\n\`\`\`${info}\n`);
    assert.ok(rest, `The page has no block of ${info}`);
    return rest.slice(0, rest.indexOf('```'));
  };
  const shownUrl = 'http://127.0.0.1:3000';

  /** Whether a text says what the page quotes from it, where `…` stands for anything. */
  function assertQuoted(quote: string, text: string) {
    const isThere = quote.split('…').every((part) => text.includes(part));
    assert.ok(isThere, `It does not say this: ${quote}`);
  }

  test('what it shows of server.ts is there, and the wrong code differs in one line', () => {
    assertQuoted(block('ts server.ts'), code);
    for (const [, call = ''] of block('mermaid').matchAll(/Server->>S\w+: (.*)/g)) {
      assertQuoted(call, code);
    }
    const wrong = block('ts wrong').match(/^.*;(?= \/\/)/gm) ?? [];
    const strange = wrong.filter((line) => !code.includes(line));
    assert.deepEqual(strange, ['const sessionId = randomUUID();']);
  });

  test('the start and the session by hand print what is shown', async () => {
    const run = await runServer(START);
    const [, url = ''] = await run.line(/^Try: curl -N (.*)\/sse$/m);
    assert.equal(run.text.replaceAll(url, shownUrl), block('text'));
    const stream = await openStream(url);
    const [session = ''] = page.split('\n## When it breaks');
    for (const [, body = '', shown] of session.matchAll(/^\$ post '(.*)'\n(.*)/gm)) {
      const answer = await post(stream.endpoint, JSON.parse(body));
      assert.equal(await answer.text(), shown);
    }
    await until(() => stream.text.includes('"id":2}'));
    stream.socket.destroy();
    await run.line(/ended after/);
    const late = await stream.post(3);
    for (const [line] of session.matchAll(/^(event|data): .*|Session \w{8} (start|end)[^`]+/gm)) {
      const quote = line.replace(/[\da-f]{8}(-[\da-f]+)*|\d+ ms/g, '…');
      assertQuoted(quote, stream.text + run.text);
    }
    assertQuoted(`The answer is \`${(await late.text()).trim()}\``, session);
  });

  test('the settings are those of server.ts, with their defaults', () => {
    const defaults: Record<string, unknown> = readSettings({});
    const inCode = [...code.matchAll(/^ {4}([A-Z_]+): (?:z|\w+Schema)\b/gm)];
    const inPage = [...page.matchAll(/^\| `([A-Z_]+)` \|(?: `(.*?)`)? \|/gm)];
    assert.deepEqual(
      inPage.map(([, name, value = '']) => `${name} ${value}`).sort(),
      inCode.map(([, name = '']) => `${name} ${defaults[name] ?? ''}`).sort(),
    );
    const names = page.matchAll(/\b([A-Z]+(?:_[A-Z]+)*)=/g);
    for (const [, name = ''] of names) assertQuoted(name, `${code} NO_PROXY SESSION`);
  });

  test('what server.ts says when something is wrong is listed as it says it', () => {
    const [, list = ''] = /\n## Settings\n[^]*?is wrong:\n([^]*?)\n\n/.exec(page) ?? [];
    const quotes = list.matchAll(/`([^`]+)`(?=: |, `)/g);
    for (const [, quote = ''] of quotes) assertQuoted(quote, code);
    const replies = code.matchAll(/reply\(res, \d+, .(\w+)/g);
    for (const [, word] of replies) assertQuoted(`\`${word}`, list);
  });

  test('nginx asks the processes that are started beside it', () => {
    const nginx = block('nginx');
    const processes = [...page.matchAll(/PORT=(\d+) MESSAGES_PATH=(\/\w+\/)/g)];
    assert.equal(processes.length, 2);
    for (const [, port, prefix] of processes) {
      assertQuoted(
        `server 127.0.0.1:${port} …location ${prefix} { proxy_pass http://127.0.0.1:${port};`,
        nginx,
      );
    }
  });

  test('the entry and the example of a client reach the server', async (t) => {
    const { firewall } = JSON.parse(block('json')).mcpServers;
    assert.deepEqual(firewall, { type: 'sse', url: `${shownUrl}/sse` });
    const file = `./node_modules/.client-${process.pid}.mts`;
    cleanups.push(() => rm(file));
    const { url } = await startServer({ getServer: () => getServer(), token: 's3cret' });
    await writeFile(file, block('ts client.ts').replace(shownUrl, url));
    const { mock } = t.mock.method(console, 'log', ignore);
    process.env['MCP_TOKEN'] = 's3cret';
    await import(`../${file}`);
    delete process.env['MCP_TOKEN'];
    const { hostname } = mock.calls[0]?.arguments[0];
    assertQuoted(`structuredContent); // { hostname: '${hostname}',`, page);
  });

  test('its links and its commands lead somewhere', () => {
    const headings = page.toLowerCase().matchAll(/^#+ (.*)/gm);
    const anchors = [...headings].map(
      ([, title = '']) => `#${title.replace(/[^\w -]/g, '').replaceAll(' ', '-')}`,
    );
    for (const [, link = ''] of page.matchAll(/\]\((?!https:)([^)]+)\)/g)) {
      assert.ok(anchors.includes(link) || existsSync(join(import.meta.dirname, '..', link)), link);
    }
    const commands = page.matchAll(/npm (?:run )?(?!install|uninstall|ci|run)(\w+)/g);
    for (const [command, name = ''] of commands) assert.ok(scripts[name], command);
  });

  const [, rows = ''] = /\n### It does not connect\n([^]*)\n### Your text/.exec(page) ?? [];

  test('each finding of the doctor stands in one row, which the doctor can read', () => {
    const found = [...rows.matchAll(/ \(`([a-z-]+)`\)<br>\*Yours/g)].map(([, name]) => name);
    assert.deepEqual(found.sort(), Object.keys(FAULTS).sort());
    for (const name of Object.keys(FAULTS)) assert.doesNotMatch(adviceOn(name), /undefined/);
  });

  test('a text of two rows says in all of them but one how to tell them apart', () => {
    const texts = rows.split('\n- ').flatMap((row) =>
      (row.split('<br>')[0] ?? '').split(/[,;] /).flatMap((part) => {
        const isTold = /\w/.test(part.replaceAll(/`[^`]*`|\bor\b/g, ''));
        return [...part.matchAll(/`([^`]+)`/g)].map(([, text = '']) => ({ text, row, isTold }));
      }),
    );
    for (const { text } of texts) {
      const bare = texts.filter((other) => other.text.includes(text) && !other.isTold);
      const rivals = new Set(bare.map(({ row }) => row));
      assert.ok(rivals.size < 2, `Two rows do not say when they apply: ${text}`);
    }
  });

  test('the texts of installed packages are what these packages say', () => {
    const sayings = {
      '@modelcontextprotocol/sdk/dist/esm/client/sse.js':
        'SSE error: …Endpoint origin does not match connection origin…Error POSTing to endpoint (HTTP ',
      '@modelcontextprotocol/sdk/dist/esm/client/streamableHttp.js':
        'Streamable HTTP error…Unexpected content type: ',
      '@modelcontextprotocol/sdk/dist/esm/examples/server/simpleSseServer.js':
        'Session not found…Missing sessionId parameter',
      '@modelcontextprotocol/sdk/dist/esm/examples/server/sseAndStreamableHttpCompatibleServer.js':
        'No transport found for sessionId',
      '@modelcontextprotocol/sdk/dist/esm/server/sse.js':
        'SSEServerTransport already started!…SSE connection not established',
      '@modelcontextprotocol/sdk/dist/esm/server/webStandardStreamableHttp.js':
        'Invalid Host header…Mcp-Session-Id',
      '@modelcontextprotocol/sdk/dist/esm/shared/protocol.js':
        'Already connected to a transport…Request timed out…Connection closed…Not connected',
      'eventsource/dist/index.js': 'Non-200 status code (…expected "text/event-stream"',
      'raw-body/index.js': 'stream is not readable',
      'undici/lib/core/errors.js': 'Body Timeout Error',
      'undici/lib/dispatcher/client-h1.js': 'other side closed',
      'undici/lib/web/fetch/index.js': 'fetch failed…terminated',
    };
    for (const [file, texts] of Object.entries(sayings)) {
      assertQuoted(texts, fileText(`node_modules/${file}`));
      assertQuoted(texts, rows);
    }
  });
});
