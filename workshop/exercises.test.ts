// SPDX-License-Identifier: MIT-0
/** The printed solutions pass the checks of their exercises, and typical mistakes do not. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { after, before, describe, mock, test } from 'node:test';
import {
  checkHealth,
  checkInterfaces,
  checkMcp,
  checkSessions,
  edit,
  FAULTS,
  findFailing,
  type Edit,
  type Start,
} from './exercises.ts';
import { cleanUp, listen, Transcript } from './helpers.ts';

const project = join(import.meta.dirname, '..');
const folder = join(project, `.exercises-${process.pid}`);
const source = readFileSync(join(project, 'server.ts'), 'utf8');
const tests = readFileSync(join(project, 'server.test.ts'), 'utf8');
const readme = readFileSync(join(project, 'README.md'), 'utf8');

/** The changes that the README prints as the solution of an exercise. */
function readSolution(number: number) {
  const section = readme.split('\n### Exercise ')[number] ?? '';
  const hunks = section.matchAll(/^@@.*\n([^]*?)(?=^@@|^```)/gm);
  return [...hunks].map(([, hunk = '']): Edit => {
    const before = hunk.replace(/^\+.*\n/gm, '').replace(/^[ -]/gm, '');
    const after = hunk.replace(/^-.*\n/gm, '').replace(/^[ +]/gm, '');
    return [before, after];
  });
}

/** Loads a server.ts into this process, because a child for each takes a minute in all. */
function load(text: string): Start {
  return async (env) => {
    mkdirSync(folder, { recursive: true });
    const file = join(folder, `${randomUUID()}.ts`);
    writeFileSync(file, `${text}\nexport { logHooks };\n`);
    const changed = await import(file);
    const firewall = changed.connectFirewall(changed.readSettings(env));
    const { handleRequest } = changed.createMcpHandler({
      getServer: () => changed.getServer(firewall),
      hooks: changed.logHooks,
      token: env.MCP_TOKEN,
    });
    const url = await listen(http.createServer(handleRequest));
    return { url, output: errors };
  };
}

/** What the servers log as errors. */
const errors = new Transcript();

const HEALTHZ = "    if (req.url === '/healthz') return";
const CLOSE = "    res.once('close', () => void transport.close());\n";

/** Wrong solutions that people hand in: what the check must say, and the change. */
const WRONG: [number, (start: Start) => Promise<void>, [RegExp, ...Edit[]][]][] = [
  [
    4,
    checkHealth,
    [
      [
        /Requests were refused: .*"started":1/,
        [HEALTHZ, `    if (req.url === '/sse') health.started += 1;\n${HEALTHZ}`],
      ],
      [/longestMs must be/, ['Math.max(health.longestMs, ', '(health.longestMs + ']],
      [/shorter session must leave longestMs/, ['Math.max(health.longestMs, ', '(']],
    ],
  ],
  [
    5,
    checkInterfaces,
    [
      [/its call must end too/, ['ask(cmd, signal)', 'ask(cmd, new AbortController().signal)']],
      [/get the command of the page/, ['<interface>all</interface>', '<interface></interface>']],
    ],
  ],
  [7, checkMcp, [[/its call must end too/, [CLOSE, '']]]],
];

describe('The exercises', { concurrency: true, timeout: 120_000 }, () => {
  before(() => {
    Transcript.patience = 2_000;
    mock.method(console, 'log', () => undefined);
    mock.method(console, 'error', (...parts: unknown[]) => errors.add(parts.join(' ')));
  });
  after(async () => {
    await cleanUp();
    Transcript.patience = 20_000;
    mock.restoreAll();
    rmSync(folder, { recursive: true, force: true });
  });

  for (const [number, check, wrong] of WRONG) {
    test(`exercise ${number} passes the printed solution, and refuses wrong ones`, async () => {
      const solved = edit(source, readSolution(number));
      await assert.rejects(check(load(source)));
      await check(load(solved));
      await Promise.all(
        wrong.map(([says, ...edits]) => assert.rejects(check(load(edit(solved, edits))), says)),
      );
    });
  }

  test('exercise 3 refuses a timer that ends sessions', async () => {
    const timer = 'setTimeout(() => transports.delete(sessionId), 300_000);';
    await assert.rejects(checkSessions(load(source), timer), /Only the end of its stream/);
  });

  for (const [name, [breaks, ...edits]] of Object.entries(FAULTS)) {
    test(`fault ${name} breaks an ordinary test`, async () => {
      const place = join(folder, name);
      mkdirSync(place, { recursive: true });
      writeFileSync(join(place, 'server.ts'), edit(source, edits));
      writeFileSync(join(place, 'server.test.ts'), tests.replace('20_000', '2_000'));
      const names = await findFailing(place);
      assert.ok(names.includes(breaks), names.join('\n'));
    });
  }
});
