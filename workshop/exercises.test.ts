// SPDX-License-Identifier: MIT-0
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { after, before, describe, mock, test } from 'node:test';
import {
  CONNECTED,
  edit,
  type Edit,
  EXERCISES,
  findFailing,
  PLACED,
  SERVER,
  type Start,
} from './exercises.ts';
import { cleanUp, ignore, logged, startListening, SUITE } from './helpers.ts';

mock.method(console, 'error', (...parts: unknown[]) => void logged.push(parts.join(' ')));
after(cleanUp, { timeout: 10_000 });

// ---- The proofs ------------------------------------------------------------------------------

/** The changes that the README prints as the solution of an exercise. */
async function readSolution(number: string) {
  const readme = await readFile('README.md', 'utf8');
  const section = readme.split('\n### Exercise ')[Number(number)] ?? '';
  const hunks = section.matchAll(/^@@.*\n([^]*?)(?=^@@|^```)/gm);
  return [...hunks].map(([, hunk = '']): Edit => {
    const before = hunk.replace(/^\+.*\n/gm, '').replace(/^[ -]/gm, '');
    const after = hunk.replace(/^-.*\n/gm, '').replace(/^[ +]/gm, '');
    return [before, after];
  });
}

const FOREIGN = '      if (isForeign(req, allowedHosts)) {\n';
const HEALTHZ = "      if (path === '/healthz') return";

/** Wrong solutions that people hand in: the fault, what the check must say, and the change. */
const WRONG: Record<string, [RegExp, ...Edit[]][]> = {
  '4': [
    // Refused requests are counted.
    [
      /Requests were refused: .*"started":1/,
      [HEALTHZ, `      if (path === ssePath) health.started += 1;\n${HEALTHZ}`],
    ],
    // It is answered before the check of Host and Origin.
    [
      /GET \/healthz with a foreign Host must get 403. Seen: 200/,
      [
        FOREIGN,
        `      if (req.url === '/healthz') return reply(res, 200, JSON.stringify(health));\n${FOREIGN}`,
      ],
    ],
    // The last session and not the longest.
    [
      /shorter session must leave longestMs/,
      ['Math.max(health.longestMs, Date.now()', '(Date.now()'],
    ],
  ],
  '5': [
    // No signal.
    [
      /A client cancels: its call to the firewall must end too/,
      ['ask(call, signal)', 'ask(call, new AbortController().signal)'],
    ],
    // One entry is no list.
    [
      /The result must be \{"addresses":\[\{[^[]*\]\}/,
      ['[data.address.entry].flat()', 'data.address.entry'],
    ],
    // An error is swallowed.
    [
      /must get an error with its words/,
      ['ask(call, signal)', "ask(call, signal).catch(() => ({ address: '' }))"],
    ],
  ],
  '7': [
    // A shared McpServer.
    [
      /each request have a server of its own.*Error handling request/,
      ['  async function handleMcp', `${SERVER}  async function handleMcp`],
      [
        `${CONNECTED}\n    await transport`,
        'await mcpServer.connect(transport);\n    await transport',
      ],
    ],
    // Nothing ends with the request.
    [
      /leaves: its call to the firewall must end too/,
      ["    res.once('close', () => void transport.close());\n", ''],
    ],
  ],
};
const NOTHING = /must get 200, .*404|must be a tool|connect to \/mcp.*Not found/;

describe('The exercises', SUITE, () => {
  const folder = `.exercises-${process.pid}`;
  const source = readFileSync('server.ts', 'utf8');
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  before(() => void mock.method(console, 'log', ignore));

  /** Runs a server.ts in this process, because a child for each takes a minute in all. */
  async function load(text: string): Promise<Start> {
    const file = `${folder}/${randomUUID()}.ts`;
    await mkdir(folder, { recursive: true });
    await writeFile(file, `${text}\nexport { logHooks };\n`);
    const changed = await import(`../${file}`);
    return async (env) => {
      const firewall = changed.connectFirewall(env);
      const { url } = await startListening(
        changed.createMcpHttpServer({
          getServer: () => changed.getServer(firewall),
          hooks: changed.logHooks,
          token: env['MCP_TOKEN'],
        }),
      );
      return url;
    };
  }

  async function prove(number: string, says: RegExp, text: string) {
    const checking = EXERCISES[number]?.(await load(text));
    const outcome = await checking?.then(() => 'passed', String);
    assert.match(`${number}: ${outcome}`, says);
  }

  for (const [number, wrong] of Object.entries(WRONG)) {
    test(`exercise ${number} passes the printed solution, and refuses wrong ones`, async () => {
      const solved = edit(source, await readSolution(number));
      await prove(number, NOTHING, source);
      await prove(number, /passed/, solved);
      for (const [says, ...edits] of wrong) await prove(number, says, edit(solved, edits));
    });
  }

  for (const [name, [breaks, ...edits]] of Object.entries(PLACED)) {
    test(`fault ${name} breaks an ordinary test`, async () => {
      const place = `${folder}/${name}`;
      const whole = await readFile('server.test.ts', 'utf8');
      const [tests = ''] = [whole];
      await mkdir(place, { recursive: true });
      await writeFile(`${place}/server.ts`, edit(source, edits));
      await writeFile(`${place}/server.test.ts`, tests);
      assert.equal(await findFailing(breaks, place), breaks);
    });
  }
});
