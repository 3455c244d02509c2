"""The REST API, version 1: one module a noun, each with a `router(api)`.

Everything is below /api/v1 but /api/events, /api/openapi.json and /api/docs. Lists come in pages:
`next` of an answer is the `cursor` of the following page. Errors are problem details (RFC 9457).
What takes long answers 202 with an operation to follow at /api/v1/operations/ID or by events.
"""
