// The unmodified e2b package in its debug mode, in which it takes whatever
// answers on localhost:49983 for its sandbox. e2b_test.go puts one there.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import {
  AuthenticationError,
  CommandExitError,
  FileNotFoundError,
  FileType,
  FilesystemEventType,
  InvalidArgumentError,
  NotFoundError,
  Sandbox,
  SandboxError,
  TimeoutError,
} from 'e2b'

const sandbox = await Sandbox.create({ debug: true, requestTimeoutMs: 120_000 })
const { commands, files, pty } = sandbox

// until resolves when check returns something true, asking anew whenever
// something happened: poll is the only way to learn of what the SDK does not
// push.
async function until(check) {
  for (;;) {
    const found = await check()
    if (found) return found
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

describe('commands', () => {
  test('foreground', async () => {
    const result = await commands.run('echo out; echo err >&2')
    assert.equal(result.exitCode, 0)
    assert.equal(result.stdout, 'out\n')
    assert.equal(result.stderr, 'err\n')
    assert.equal(result.error, undefined)
  })

  test('exit code', async () => {
    await assert.rejects(commands.run('echo partly; exit 3'), (err) => {
      assert.ok(err instanceof CommandExitError)
      assert.equal(err.exitCode, 3)
      assert.equal(err.error, 'exit status 3')
      assert.equal(err.stdout, 'partly\n')
      return true
    })
  })

  test('a command that is not there exits with 127', async () => {
    await assert.rejects(commands.run('no-such-command-here'), { exitCode: 127 })
  })

  test('environment, directory and user', async () => {
    const result = await commands.run('echo "$GREETING|$PWD|$(id -un)|$HOME"', {
      envs: { GREETING: 'hello wörld' },
      cwd: '/tmp',
      user: 'nobody',
    })
    assert.equal(result.stdout, 'hello wörld|/tmp|nobody|/nonexistent\n')
  })

  test('output arrives in pieces, each once', async () => {
    const pieces = []
    const handle = await commands.run('for i in 1 2 3; do echo $i; read go; done', {
      background: true,
      stdin: true,
      onStdout: (piece) => pieces.push(piece),
    })
    for (const n of ['1\n', '2\n', '3\n']) {
      await until(() => pieces.at(-1) === n)
      await handle.sendStdin('\n')
    }
    await handle.wait()
    assert.deepEqual(pieces, ['1\n', '2\n', '3\n'])
  })

  test('a megabyte of output', async () => {
    const result = await commands.run('head -c 1000000 /dev/zero | tr "\\0" x')
    assert.equal(result.stdout.length, 1_000_000)
  })

  test('characters cut in two by the pipe', async () => {
    const result = await commands.run("printf '\\303'; sleep 0.1; printf '\\244'")
    assert.equal(result.stdout, 'ä')
  })

  test('stdin, and its end', async () => {
    const handle = await commands.run('cat; echo done', { background: true, stdin: true })
    await handle.sendStdin('first ')
    await commands.sendStdin(handle.pid, new TextEncoder().encode('second '))
    await handle.closeStdin()
    await handle.closeStdin()
    assert.equal((await handle.wait()).stdout, 'first second done\n')
  })

  test('without stdin there is none', async () => {
    const handle = await commands.run('cat; sleep 100', { background: true })
    await assert.rejects(handle.sendStdin('x'), SandboxError)
    await handle.kill()
  })

  test('kill by handle', async () => {
    const handle = await commands.run('sleep 100', { background: true })
    await commands.run(`kill -0 ${handle.pid}`)
    assert.equal(await handle.kill(), true)
    await assert.rejects(handle.wait(), (err) => {
      assert.ok(err instanceof CommandExitError)
      assert.equal(err.exitCode, -1)
      assert.equal(err.error, 'signal: killed')
      return true
    })
    await assert.rejects(commands.run(`kill -0 ${handle.pid}`), CommandExitError)
  })

  test('kill by pid', async () => {
    const handle = await commands.run('sleep 100', { background: true })
    assert.equal(await commands.kill(handle.pid), true)
    await assert.rejects(handle.wait(), CommandExitError)
    assert.equal(await commands.kill(999_999), false)
  })

  test('timeout ends the command', async () => {
    await assert.rejects(commands.run('sleep 76543', { timeoutMs: 500 }), TimeoutError)
    await until(async () => !(await commands.run('pgrep -f "sleep 7654[3]" || true')).stdout)
  })

  test('no timeout', async () => {
    assert.equal((await commands.run('sleep 1; echo late', { timeoutMs: 0 })).stdout, 'late\n')
  })

  test('list', async () => {
    const handle = await commands.run('sleep 100', { background: true, cwd: '/tmp', envs: { A: 'b' } })
    const [found] = (await commands.list()).filter((p) => p.pid === handle.pid)
    assert.equal(found.cmd, '/bin/bash')
    assert.deepEqual(found.args, ['-l', '-c', 'sleep 100'])
    assert.equal(found.cwd, '/tmp')
    assert.deepEqual(found.envs, { A: 'b' })
    await handle.kill()
    await until(async () => !(await commands.list()).some((p) => p.pid === handle.pid))
  })

  test('connect after disconnect', async () => {
    const first = await commands.run('read line; echo "got $line"', { background: true, stdin: true })
    await first.disconnect()
    const second = await commands.connect(first.pid)
    await commands.sendStdin(first.pid, 'this\n')
    const result = await second.wait()
    assert.equal(result.stdout, 'got this\n')
    assert.equal(result.exitCode, 0)
  })

  test('two on one command', async () => {
    const first = await commands.run('read line; echo both', { background: true, stdin: true })
    const second = await commands.connect(first.pid)
    await first.sendStdin('\n')
    assert.equal((await first.wait()).stdout, 'both\n')
    assert.equal((await second.wait()).stdout, 'both\n')
  })

  test('connect to nothing', async () => {
    await assert.rejects(commands.connect(999_999), NotFoundError)
  })

  test('bad directory', async () => {
    await assert.rejects(commands.run('true', { cwd: '/no/such' }), (err) => {
      assert.ok(err instanceof InvalidArgumentError)
      assert.match(err.message, /cwd '\/no\/such' does not exist/)
      return true
    })
  })

  test('bad user', async () => {
    await assert.rejects(commands.run('true', { user: 'nosuchuser' }), (err) => {
      assert.ok(err instanceof AuthenticationError)
      assert.match(err.message, /invalid username: 'nosuchuser'/)
      return true
    })
  })

  test('thirty at once', async () => {
    const results = await Promise.all(Array.from({ length: 30 }, (_, i) => commands.run(`echo ${i}`)))
    assert.deepEqual(results.map((r) => r.stdout), Array.from({ length: 30 }, (_, i) => `${i}\n`))
  })
})

describe('files', () => {
  const dir = '/srv/e2b files'
  before(() => files.makeDir(dir))
  after(() => files.remove(dir))

  test('write and read text', async () => {
    const info = await files.write(`${dir}/ä b.txt`, 'héllo\n')
    assert.equal(info.name, 'ä b.txt')
    assert.equal(info.path, `${dir}/ä b.txt`)
    assert.equal(info.type, FileType.FILE)
    assert.equal(await files.read(`${dir}/ä b.txt`), 'héllo\n')
    await files.write(`${dir}/ä b.txt`, 'x')
    assert.equal(await files.read(`${dir}/ä b.txt`), 'x')
  })

  test('empty file', async () => {
    await files.write(`${dir}/empty`, '')
    assert.equal(await files.read(`${dir}/empty`), '')
  })

  for (const opts of [{}, { gzip: true }, { useOctetStream: true }, { gzip: true, useOctetStream: true }]) {
    test(`binary there and back ${JSON.stringify(opts)}`, async () => {
      const bytes = new Uint8Array(300_000).map((_, i) => (i * 7 + (i >> 8)) & 255)
      await files.write(`${dir}/binary`, bytes.buffer, opts)
      const back = await files.read(`${dir}/binary`, { format: 'bytes', gzip: opts.gzip })
      assert.deepEqual(Buffer.compare(Buffer.from(back), Buffer.from(bytes)), 0)
      const blob = await files.read(`${dir}/binary`, { format: 'blob' })
      assert.equal(blob.size, bytes.length)
    })
  }

  test('read as a stream', async () => {
    await files.write(`${dir}/streamed`, 'y'.repeat(200_000))
    let length = 0
    for await (const piece of await files.read(`${dir}/streamed`, { format: 'stream' })) length += piece.length
    assert.equal(length, 200_000)
  })

  test('several files, parents made', async () => {
    const infos = await files.write([
      { path: `${dir}/many/a/1.txt`, data: 'one' },
      { path: `${dir}/many/2.txt`, data: 'two' },
    ])
    assert.deepEqual(infos.map((i) => i.path), [`${dir}/many/a/1.txt`, `${dir}/many/2.txt`])
    assert.equal(await files.read(`${dir}/many/a/1.txt`), 'one')
  })

  test('metadata', async () => {
    await files.write(`${dir}/meta`, 'x', { metadata: { Color: 'blue' } })
    assert.deepEqual((await files.getInfo(`${dir}/meta`)).metadata, { color: 'blue' })
  })

  test('relative paths and ownership', async () => {
    await files.write('relative.txt', 'home')
    assert.equal(await files.read('/root/relative.txt'), 'home')
    await files.remove('relative.txt')
    await files.write('/tmp/of-nobody', 'x', { user: 'nobody' })
    assert.equal((await files.getInfo('/tmp/of-nobody')).owner, 'nobody')
    await files.remove('/tmp/of-nobody')
  })

  test('getInfo', async () => {
    await files.write(`${dir}/info`, '12345')
    await commands.run(`chmod 640 '${dir}/info' && ln -sf info '${dir}/link'`)
    const info = await files.getInfo(`${dir}/info`)
    assert.equal(info.name, 'info')
    assert.equal(info.type, FileType.FILE)
    assert.equal(info.path, `${dir}/info`)
    assert.equal(info.size, 5)
    assert.equal(info.mode, 0o640)
    assert.equal(info.permissions, '-rw-r-----')
    assert.equal(info.owner, 'root')
    assert.equal(info.group, 'root')
    assert.ok(Math.abs(info.modifiedTime.getTime() - Date.now()) < 600_000)
    const link = await files.getInfo(`${dir}/link`)
    assert.equal(link.symlinkTarget, `${dir}/info`)
    assert.equal(link.type, FileType.FILE)
    assert.equal(link.permissions[0], 'L')
  })

  test('exists', async () => {
    assert.equal(await files.exists(dir), true)
    assert.equal(await files.exists(`${dir}/nothing`), false)
  })

  test('makeDir', async () => {
    assert.equal(await files.makeDir(`${dir}/new/deep`), true)
    assert.equal(await files.makeDir(`${dir}/new/deep`), false)
  })

  test('list', async () => {
    await files.write([
      { path: `${dir}/list/b`, data: '' },
      { path: `${dir}/list/a/c`, data: '' },
    ])
    const entries = await files.list(`${dir}/list`)
    assert.deepEqual(entries.map((e) => [e.name, e.type]), [['a', FileType.DIR], ['b', FileType.FILE]])
    const deep = await files.list(`${dir}/list`, { depth: 2 })
    assert.deepEqual(deep.map((e) => e.path), [`${dir}/list/a`, `${dir}/list/a/c`, `${dir}/list/b`])
  })

  test('rename', async () => {
    await files.write(`${dir}/old`, 'moved')
    const info = await files.rename(`${dir}/old`, `${dir}/made/on/the/way`)
    assert.equal(info.path, `${dir}/made/on/the/way`)
    assert.equal(await files.read(`${dir}/made/on/the/way`), 'moved')
    assert.equal(await files.exists(`${dir}/old`), false)
  })

  test('remove', async () => {
    await files.write(`${dir}/gone/with/all`, '')
    await files.remove(`${dir}/gone`)
    assert.equal(await files.exists(`${dir}/gone`), false)
    await files.remove(`${dir}/gone`)
  })

  test('what cannot be', async () => {
    await assert.rejects(files.read(`${dir}/nothing`), FileNotFoundError)
    await assert.rejects(files.read(dir), InvalidArgumentError)
    await assert.rejects(files.write(dir, 'x'), InvalidArgumentError)
    await assert.rejects(files.getInfo(`${dir}/nothing`), FileNotFoundError)
    await assert.rejects(files.list(`${dir}/nothing`), FileNotFoundError)
    await assert.rejects(files.rename(`${dir}/nothing`, `${dir}/other`), FileNotFoundError)
    await files.write(`${dir}/file`, '')
    await assert.rejects(files.list(`${dir}/file`), InvalidArgumentError)
    await assert.rejects(files.read(`${dir}/file`, { user: 'nosuchuser' }), AuthenticationError)
  })

  for (const recursive of [false, true]) {
    test(`watch, ${recursive ? 'with' : 'without'} what is below`, async () => {
      const watched = `${dir}/watched-${recursive}`
      await files.makeDir(`${watched}/sub`)
      const events = []
      const handle = await files.watchDir(watched, (event) => events.push(event), { recursive, includeEntry: true })
      const saw = (name, type) => until(() => events.find((e) => e.name === name && e.type === type))

      await files.write(`${watched}/sub/below`, 'x')
      await files.write(`${watched}/file`, 'x')
      const created = await saw('file', FilesystemEventType.CREATE)
      assert.equal(created.entry?.path, `${watched}/file`)
      await saw('file', FilesystemEventType.WRITE)
      await commands.run(`chmod 600 '${watched}/file'`)
      await saw('file', FilesystemEventType.CHMOD)
      await files.rename(`${watched}/file`, `${watched}/renamed`)
      await saw('file', FilesystemEventType.RENAME)
      await files.remove(`${watched}/renamed`)
      await saw('renamed', FilesystemEventType.REMOVE)
      if (recursive) {
        await saw('sub/below', FilesystemEventType.CREATE)
        await files.makeDir(`${watched}/fresh`)
        await saw('fresh', FilesystemEventType.CREATE)
        await files.write(`${watched}/fresh/inside`, 'x')
        await saw('fresh/inside', FilesystemEventType.CREATE)
      } else {
        assert.ok(!events.some((e) => e.name.includes('below')))
      }
      await handle.stop()
      const before = events.length
      await files.write(`${watched}/unseen`, 'x')
      await commands.run('sleep 0.2')
      assert.equal(events.length, before)
    })
  }

  test('watch what cannot be', async () => {
    await assert.rejects(files.watchDir(`${dir}/nothing`, () => {}), FileNotFoundError)
    await files.write(`${dir}/file`, '')
    await assert.rejects(files.watchDir(`${dir}/file`, () => {}), InvalidArgumentError)
  })
})

describe('pty', () => {
  async function open(opts = {}) {
    let text = ''
    const decoder = new TextDecoder()
    const handle = await pty.create({
      cols: 80,
      rows: 24,
      onData: (data) => { text += decoder.decode(data, { stream: true }) },
      ...opts,
    })
    return { handle, type: (line) => pty.sendInput(handle.pid, new TextEncoder().encode(line)), shows: (what) => until(() => what.test(text)) }
  }

  test('a shell one types to', async () => {
    const t = await open({ envs: { SECRET: 'wörd' }, cwd: '/tmp' })
    await t.type('echo "<$TERM $LANG $SECRET $PWD>"\n')
    await t.shows(/<xterm-256color C.UTF-8 wörd \/tmp>/)
    await t.type('exit 0\n')
    assert.equal((await t.handle.wait()).exitCode, 0)
  })

  test('resize', async () => {
    const t = await open()
    await t.type('stty size\n')
    await t.shows(/24 80/)
    await pty.resize(t.handle.pid, { cols: 120, rows: 40 })
    await t.type('stty size\n')
    await t.shows(/40 120/)
    await t.handle.kill()
  })

  test('interrupt', async () => {
    const t = await open()
    // One process says it and sleeps: between two of its commands bash does not pass the signal on.
    await t.type('sh -c "echo begun; exec sleep 100"; echo "status $?"\n')
    await t.shows(/begun\r\n/)
    await t.type('\u0003')
    await t.type('echo "last $?"\n')
    await t.shows(/last 130/)
    await t.handle.kill()
  })

  test('kill', async () => {
    const t = await open()
    assert.equal(await pty.kill(t.handle.pid), true)
    await assert.rejects(t.handle.wait(), { exitCode: -1 })
    assert.equal(await pty.kill(999_999), false)
  })

  test('connect', async () => {
    const t = await open()
    await t.handle.disconnect()
    let text = ''
    const again = await pty.connect(t.handle.pid, { onData: (data) => { text += Buffer.from(data).toString() } })
    await t.type('echo $((6*7))\n')
    await until(() => text.includes('42'))
    await again.kill()
  })

  test('what cannot be', async () => {
    const t = await open()
    await assert.rejects(commands.sendStdin(t.handle.pid, 'x'), SandboxError)
    await t.handle.kill()
    const handle = await commands.run('sleep 100', { background: true, stdin: true })
    await assert.rejects(pty.sendInput(handle.pid, new Uint8Array([1])), SandboxError)
    await assert.rejects(pty.resize(999_999, { cols: 1, rows: 1 }), NotFoundError)
    await handle.kill()
  })
})

test('metrics and health', async () => {
  assert.equal(await sandbox.isRunning(), true)
  assert.equal((await fetch('http://localhost:49983/health')).status, 204)
  const metrics = await (await fetch('http://localhost:49983/metrics')).json()
  assert.ok(metrics.mem_total > 64 << 20)
  assert.ok(metrics.cpu_count >= 1)
})
