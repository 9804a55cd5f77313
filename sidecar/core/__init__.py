"""The pure core: same facts in the same order, same decisions. No clock, no I/O, no randomness, no asyncio in here.

Layout, in reading order: `model` (the words), `policy` (the numbers), `world` (what is known; `absorb` takes facts in), `streak`, `pace`,
`guard`, `decide` (the page to read first), `plan` (decisions to writes), `histogram` and `window` (percentiles), `story` (sentences).
"""
