// Runs one upload with a release of tus-js-client and prints what happened as one line of JSON.
//
//   node tus.mjs '{"client": "tus-js-client", "file": "source.bin", "uploadUrl": "http://..."}'
//
// client       the name in package.json of the release to use
// file         what to upload
// uploadUrl    the URL of the session (as the web UI gives it), or
// endpoint     the URL at which a session is made with POST
// uploadSize   the size of the file, where the client cannot tell it
// chunkSize    how much one PATCH carries; all of the file without it
// retryDelays  how long to wait before each retry, in milliseconds
// abortAt      after how many bytes sent to abort the upload and to start it again at once
// terminateAt  after how many bytes sent to give the upload up with abort(true)
// buffer       true to read the file into memory first, else it is a stream
// headers      more headers for each request

import { createReadStream, readFileSync } from 'node:fs'

const job = JSON.parse(process.argv[2])
const { Upload } = await import(job.client)
const seen = { requests: [], errors: [], aborted: 0, chunks: 0, done: false, terminated: false }

let abortAt = job.abortAt
let terminateAt = job.terminateAt
const input = job.buffer ? readFileSync(job.file) : createReadStream(job.file)

await new Promise((resolve) => {
  const finish = () => resolve()
  const upload = new Upload(input, {
    uploadUrl: job.uploadUrl ?? null,
    endpoint: job.endpoint ?? null,
    uploadSize: job.uploadSize ?? null,
    chunkSize: job.chunkSize ?? Infinity,
    retryDelays: job.retryDelays ?? null,
    headers: job.headers ?? {},
    metadata: { filename: 'source.bin' },
    onAfterResponse(request, response) {
      seen.requests.push([
        request.getMethod(),
        response.getStatus(),
        response.getHeader('upload-offset') ?? null,
      ])
    },
    onChunkComplete() {
      seen.chunks += 1
    },
    onProgress(sent) {
      if (abortAt !== undefined && sent >= abortAt) {
        abortAt = undefined
        seen.aborted += 1
        upload.abort()
        upload.start()
      } else if (terminateAt !== undefined && sent >= terminateAt) {
        terminateAt = undefined
        seen.aborted += 1
        upload.abort(true).then(
          () => {
            seen.terminated = true
            finish()
          },
          (error) => {
            seen.errors.push(String(error))
            finish()
          },
        )
      }
    },
    onSuccess() {
      seen.done = true
      finish()
    },
    onError(error) {
      seen.errors.push(String(error))
      finish()
    },
  })
  upload.start()
})

process.stdout.write(`${JSON.stringify(seen)}\n`)
process.exit(0)
