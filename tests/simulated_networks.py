"""Carries plans over the links of a simulated network."""

import numpy as np

from hardware.simulated.engine import Engine
from hardware.simulated.network.links import Links
from hardware.simulated.network.topologies import Switch

QUIET = {"background": {}, "changes": {}}
ALPHA, BANDWIDTH, PAYLOAD = 50e-6, 1.25e9, 1e8
ETHERNET = Switch(**QUIET, latency_s=ALPHA, bandwidth_bytes_per_s=BANDWIDTH)


def carried(network, num_devices, jobs, shortcuts=True):
    """End of every rank, in s, of each of `jobs`: (begin in s, plan, devices); and the links."""
    engine = Engine()
    links = Links(network, engine, num_devices, shortcuts)
    ends = [np.full(plan.num_ranks, np.nan) for _, plan, _ in jobs]

    def begin(job, plan, devices):
        def ended(ranks):
            assert np.isnan(ends[job][ranks]).all()
            ends[job][ranks] = engine.env.now

        links.carry(plan, np.array(devices), ended)

    for job, (begin_s, plan, devices) in enumerate(jobs):
        event = engine.env.timeout(begin_s)
        event.callbacks.append(lambda _, job=job, plan=plan, devices=devices: begin(job, plan, devices))
    engine.env.run()
    return ends, links
