"""Processes that tests may kill: forked from a server that has imported torch already."""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["dynamics.traces", "torch._dynamo", "probes"])
