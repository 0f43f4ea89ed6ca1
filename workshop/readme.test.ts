// SPDX-License-Identifier: MIT-0
/** What the README shows is what the files and the programs say. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { readSettings } from '../server.ts';
import { cleanUp, openStream, outputOf, startServer } from './helpers.ts';

const project = join(import.meta.dirname, '..');
const fileText = (name: string) => readFileSync(join(project, name), 'utf8');

/** Fails unless a text says what the page quotes from it, where `…` stands for anything. */
function assertQuoted(quote: string, text: string) {
  const isThere = quote.split('…').every((part) => text.includes(part));
  assert.ok(isThere, `This is not said: ${quote}`);
}

describe('README', { concurrency: true, timeout: 60_000 }, () => {
  after(cleanUp);
  const page = fileText('README.md');
  const code = fileText('server.ts');
  const shownUrl = 'http://127.0.0.1:3000';
  const block = (info: string) => {
    const found = new RegExp(`\n\`\`\`${info}\n([^]*?)\`\`\``).exec(page);
    const [, text = ''] = found ?? assert.fail(`The page has no block of ${info}`);
    return text;
  };

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
    const { url, output } = await startServer({});
    await output.match(/Try: .*\n/);
    assert.equal(output.text.replaceAll(url, shownUrl), block('text'));
    const { stream, endpoint, leave } = await openStream(url);
    const headers = { 'content-type': 'application/json' };
    const post = (body: string) => fetch(endpoint, { method: 'POST', headers, body });
    const [session = ''] = page.split('\n## When it breaks');
    for (const [, body = '', shown] of session.matchAll(/^\$ post '(.*)'\n(.*)/gm)) {
      const answer = await post(body);
      assert.equal(await answer.text(), shown);
    }
    await stream.match(/"id":2}/);
    leave();
    await output.match(/ended after/);
    const late = await post('{}');
    for (const [line] of session.matchAll(/^(event|data): .*|Session \w{8} (start|end)[^`]+/gm)) {
      assertQuoted(line.replace(/[\da-f]{8}(-[\da-f]+)*|\d+ ms/g, '…'), stream.text + output.text);
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
  });

  test('the example of a client reaches a server with a token', async () => {
    const { url } = await startServer({ MCP_TOKEN: 's3cret' });
    const example = block('ts client.ts');
    const file = join(project, `node_modules/.client-${process.pid}.mts`);
    writeFileSync(file, example.replace(shownUrl, url));
    const output = await outputOf(`MCP_TOKEN=s3cret node ${file}`).finally(() => rmSync(file));
    const [, shown] = /content\); \/\/ (.*)/.exec(example) ?? [];
    assertQuoted(`${shown}`, output.replace(/\s+/g, ' '));
  });

  test('its links and its commands lead somewhere', () => {
    const headings = page.toLowerCase().matchAll(/^#+ (.*)/gm);
    const anchors = [...headings].map(
      ([, title = '']) => `#${title.replace(/[^\w -]/g, '').replaceAll(' ', '-')}`,
    );
    for (const [, link = ''] of page.matchAll(/\]\((?!https:)([^)]+)\)/g)) {
      assert.ok(anchors.includes(link) || existsSync(join(project, link)), link);
    }
    const { scripts } = JSON.parse(fileText('package.json'));
    const commands = page.matchAll(/npm (?:run )?(?!install|ci|run|does|pkg)([a-z]+)/g);
    for (const [command, name = ''] of commands) assert.ok(scripts[name], command);
  });
});
