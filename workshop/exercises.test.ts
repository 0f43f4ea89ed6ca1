// SPDX-License-Identifier: MIT-0
/** The printed solutions pass the checks of their exercises, and typical mistakes do not. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { after, before, describe, mock, test } from 'node:test';
import {
  doctor,
  edit,
  FAULTS,
  findFailing,
  healthz,
  mcp,
  showInterfaces,
  type Edit,
  type Start,
} from './exercises.ts';
import { cleanUp, listen, patience, startServer, Transcript } from './helpers.ts';

const project = join(import.meta.dirname, '..');
const folder = mkdtempSync(join(project, '.exercises-'));
const [source = '', tests = '', readme = ''] = ['server.ts', 'server.test.ts', 'README.md'].map(
  (name) => readFileSync(join(project, name), 'utf8'),
);

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

/** Writes a changed server.ts and its tests, and returns their folder. */
function write(edits: Edit[], text = source) {
  const place = mkdtempSync(join(folder, 'work-'));
  writeFileSync(join(place, 'server.ts'), `${edit(text, edits)}\nexport { logHooks };\n`);
  writeFileSync(join(place, 'server.test.ts'), tests.replace('20_000', '2_000'));
  return place;
}

/** Loads a server.ts into this process, because a child for each takes a minute in all. */
function load(place: string): Start {
  return async (env) => {
    const changed = await import(join(place, 'server.ts'));
    const firewall = changed.connectFirewall(changed.readSettings(env));
    const { handleRequest } = changed.createMcpHandler({
      getServer: () => changed.getServer(firewall),
      hooks: changed.logHooks,
      token: env.MCP_TOKEN,
    });
    return { url: await listen(http.createServer(handleRequest)), output: new Transcript() };
  };
}

const HEALTHZ = "    if (req.url === '/healthz') return";
const HANDLE = '  async function handleMcp(';
const CLOSE = "    res.once('close', () => void transport.close());\n";
const CONNECT = `${CLOSE}    await getServer().connect(transport);\n`;

/** Wrong solutions that people hand in: what the check must say, and the change. */
const WRONG: [number, (start: Start) => Promise<void>, [RegExp, ...Edit[]][]][] = [
  [
    4,
    healthz,
    [
      [/refused: [^]*started: [1-9]/, [HEALTHZ, `    health.started += 1;\n${HEALTHZ}`]],
      [/longestMs/, ['Math.max(health.longestMs, ', '(health.longestMs + ']],
    ],
  ],
  [
    5,
    showInterfaces,
    [
      [/its call must end too/, ['ask(cmd, signal)', 'ask(cmd, new AbortController().signal)']],
      [/must ask for/, ['<interface>all</interface>', '<interface></interface>']],
    ],
  ],
  [
    7,
    mcp,
    [
      [/its call must end too/, [CLOSE, '']],
      [
        /also while others wait/,
        [HANDLE, `  let last: StreamableHTTPServerTransport | undefined;\n${HANDLE}`],
        [CONNECT, `    await last?.close();\n    last = transport;\n${CONNECT}`],
      ],
    ],
  ],
];

describe('The exercises', { concurrency: 6, timeout: 120_000 }, () => {
  before(() => {
    patience.ms = 4_000;
    mock.method(console, 'log', () => undefined);
  });
  after(async () => {
    await cleanUp();
    rmSync(folder, { recursive: true });
  });

  test('exercise 3 refuses a timer that ends sessions', async () => {
    const stored = 'transports.set(sessionId, transport);\n';
    const timer = 'setTimeout(() => transports.delete(sessionId), 300_000);';
    const place = write([[stored, stored + timer]]);
    const start: Start = (env) => startServer(env, place);
    await assert.rejects(doctor(start, 100), /does a timer end sessions/);
  });

  for (const [number, check, wrong] of WRONG) {
    test(`exercise ${number} passes the printed solution, and refuses wrong ones`, async () => {
      const solution = readSolution(number);
      const solved = edit(source, solution);
      await check(load(write([], solved)));
      const refused = wrong.map(([says, ...edits]) =>
        assert.rejects(check(load(write(edits, solved))), says),
      );
      await Promise.all([...refused, assert.rejects(check(load(write([]))))]);
    });
  }

  for (const [name, edits] of Object.entries(FAULTS)) {
    test(`fault ${name} breaks an ordinary test`, async () => {
      const names = await findFailing(write(edits), '^Sessions');
      assert.ok(names.length > 0 && !names.includes('none could be run'), names.join('\n'));
    });
  }
});
