"""Transfers that share links max-min fairly, in compiled code.

(Bertsekas, Gallager, Data Networks, 1992, section 6.5.2: progressive filling.) A *job* is one plan under way; its ranks
obey the rule in plans.py. A *transfer* flows over the links of its route until its last byte has left, then travels for
its latency. When transfers begin or leave, the rates of those that share a link with them, directly or through others,
are solved again, once per instant; no other transfer is looked at. `s` is the `State` of arrays.py.
"""

import numpy as np
from numba import njit

from hardware.simulated.network.arrays import (
    CHANGE,
    DIRTY,
    ENDED,
    FEW_TRANSFERS,
    FLOWS,
    FREE,
    HEAP,
    MARK,
    OVER,
    PAUSED,
    READY,
    SEQUENCE,
    STARTS,
    TRAVELS,
)
from harness.kernels.native import INLINE


@njit(cache=True, nogil=True)
def run(s, until_s):
    """Go on until ranks have ended, the next event is later than `until_s`, or an array is too small."""
    while True:
        while True:
            while s.counts[HEAP] and s.transfers[s.heap[0]].key <= s.clock[0]:
                _happen(s, _pop(s))
            if s.counts[READY] == 0:
                break
            status = _issue(s, s.ready[s.counts[READY] - 1])
            if status != PAUSED:
                return status
        while s.counts[CHANGE] < len(s.change_s) and s.change_s[s.counts[CHANGE]] <= s.clock[0]:
            link = s.change_link[s.counts[CHANGE]]
            s.links[link].capacity = s.change_capacity[s.counts[CHANGE]]
            _soil(s, link)
            s.counts[CHANGE] += 1
        if s.counts[DIRTY]:
            _solve(s)
            continue
        next_s = s.transfers[s.heap[0]].key if s.counts[HEAP] else np.inf
        if s.counts[HEAP] and s.counts[CHANGE] < len(s.change_s):
            next_s = min(next_s, s.change_s[s.counts[CHANGE]])
        s.clock[1] = next_s
        if s.counts[OVER]:
            return ENDED
        if next_s > until_s or next_s == np.inf:
            return PAUSED
        s.clock[0] = next_s


@njit(cache=True, nogil=True)
def start(s, job, at_s):
    """Let a job begin at a time; one transfer must be free."""
    t = _take(s)
    transfer = s.transfers[t]
    transfer.kind, transfer.source = STARTS, job
    transfer.key = at_s
    _push(s, t)


@njit(**INLINE)
def _take(s):
    s.counts[FREE] -= 1
    t = s.free[s.counts[FREE]]
    s.transfers[t].sequence = s.counts[SEQUENCE]
    s.counts[SEQUENCE] += 1
    return t


@njit(**INLINE)
def _give_back(s, t):
    s.free[s.counts[FREE]] = t
    s.counts[FREE] += 1


@njit(**INLINE)
def _happen(s, t):
    """The start of a job, the last byte of a transfer leaving, or its arrival."""
    transfer = s.transfers[t]
    if transfer.kind == STARTS:
        job = s.jobs[transfer.source]
        for slot in range(job.first + job.ranks - 1, job.first - 1, -1):
            _pass_arrived(s, slot)
            _queue(s, slot)
        _give_back(s, t)
    elif transfer.kind == FLOWS:
        _detach(s, t)
        transfer.kind = TRAVELS
        transfer.key = s.clock[0] + transfer.latency_s
        _push(s, t)
        rank = s.ranks[transfer.source]
        rank.sending -= 1
        _queue(s, transfer.source)
    else:
        for slot in (transfer.source, transfer.destination):
            s.window[slot, transfer.step & (s.window.shape[1] - 1)] += 1
            _pass_arrived(s, slot)
            _queue(s, slot)
        _give_back(s, t)


@njit(**INLINE)
def _queue(s, slot):
    if not s.ranks[slot].queued:
        s.ranks[slot].queued = 1
        s.ready[s.counts[READY]] = slot
        s.counts[READY] += 1


@njit(**INLINE)
def _pass_arrived(s, slot):
    """Move a rank's prefix over the steps of which all has arrived; those who wait for it may go on."""
    rank = s.ranks[slot]
    before = rank.prefix
    _move_prefix(s, slot)
    if rank.prefix > before:
        while rank.first_waiter:
            waiter = rank.first_waiter - 1
            rank.first_waiter = s.ranks[waiter].next_waiter
            s.ranks[waiter].waits = 0
            _queue(s, waiter)


@njit(**INLINE)
def _move_prefix(s, slot):
    rank = s.ranks[slot]
    job = s.jobs[rank.job]
    while rank.prefix < job.steps:
        while rank.prefix >= s.until[job.until + rank.prefix_round]:
            rank.prefix_round += 1
        column = rank.prefix & (s.window.shape[1] - 1)
        expected = s.expect[job.expect + rank.prefix_round * job.ranks + slot - job.first]
        if s.window[slot, column] < expected:
            return
        s.window[slot, column] = 0
        rank.prefix += 1


@njit(**INLINE)
def _issue(s, slot):
    """Begin all sends that the top of the stack, rank `slot`, may begin by the rule; then take it off."""
    rank = s.ranks[slot]
    job = s.jobs[rank.job]
    while rank.step < job.steps and rank.sending == 0 and rank.prefix > rank.step - job.depth:
        while rank.step >= s.until[job.until + rank.round]:
            rank.round += 1
        row = job.offsets + rank.round * (job.ranks + 1) + slot - job.first
        first, last = s.offsets[row], s.offsets[row + 1]
        if last - first > s.counts[FREE]:
            return FEW_TRANSFERS
        for send in range(first, last):
            other = job.first + s.sends[send].destination
            if s.ranks[other].prefix <= rank.step - job.depth:
                _wait_for(s, slot, other)
                return PAUSED
        for send in range(first, last):
            _begin(s, slot, send)
        rank.step += 1
    if rank.prefix == job.steps and rank.step == job.steps and not rank.over:
        rank.over = 1
        s.over[s.counts[OVER]] = slot
        s.counts[OVER] += 1
    rank.queued = 0
    s.counts[READY] -= 1
    return PAUSED


@njit(**INLINE)
def _wait_for(s, slot, other):
    """Take rank `slot` off the stack until the prefix of rank `other` has moved."""
    rank = s.ranks[slot]
    if not rank.waits:
        rank.waits, rank.next_waiter = 1, s.ranks[other].first_waiter
        s.ranks[other].first_waiter = slot + 1  # 0 is none
    rank.queued = 0
    s.counts[READY] -= 1


@njit(**INLINE)
def _begin(s, slot, index):
    send, t, rank = s.sends[index], _take(s), s.ranks[slot]
    transfer = s.transfers[t]
    transfer.source, transfer.step = slot, rank.step
    transfer.destination = s.jobs[rank.job].first + send.destination
    transfer.latency_s, transfer.route, transfer.hops = send.latency_s, send.route, send.hops
    if send.hops > 0 and (send.wire_bytes > 0 or _is_broken(s, send)):
        transfer.kind, transfer.key = FLOWS, np.inf
        transfer.left_bytes, transfer.rate, transfer.since_s = send.wire_bytes, 0.0, s.clock[0]
        rank.sending += 1
        _attach(s, t, send)
    else:
        transfer.kind, transfer.key = TRAVELS, s.clock[0] + send.latency_s
    _push(s, t)


@njit(**INLINE)
def _is_broken(s, send):
    """Whether nothing passes its route, not even a message of no bytes."""
    broken = False
    for hop in range(send.hops):
        broken |= s.links[s.routes[send.route + hop]].capacity <= 0
    return broken


@njit(**INLINE)
def _attach(s, t, send):
    hops = s.nodes.shape[1]
    for hop in range(send.hops):
        index = s.routes[send.route + hop]
        link = s.links[index]
        s.nodes[t, hop, 0], s.nodes[t, hop, 1] = link.head, -1
        if link.head >= 0:
            s.nodes[link.head // hops, link.head % hops, 1] = t * hops + hop
        link.head = t * hops + hop
        if link.flows == 0:
            link.since_s = s.clock[0]
        link.flows += 1
        link.wire_bytes += send.wire_bytes
        link.payload_bytes += send.payload_bytes
        _soil(s, index)


@njit(**INLINE)
def _detach(s, t):
    hops, transfer = s.nodes.shape[1], s.transfers[t]
    for hop in range(transfer.hops):
        index = s.routes[transfer.route + hop]
        link = s.links[index]
        after, before = s.nodes[t, hop, 0], s.nodes[t, hop, 1]
        if before >= 0:
            s.nodes[before // hops, before % hops, 0] = after
        else:
            link.head = after
        if after >= 0:
            s.nodes[after // hops, after % hops, 1] = before
        link.flows -= 1
        if link.flows == 0:
            link.busy_s += s.clock[0] - link.since_s
        _soil(s, index)


@njit(**INLINE)
def _soil(s, link):
    if not s.links[link].dirty:
        s.links[link].dirty = 1
        s.dirty[s.counts[DIRTY]] = link
        s.counts[DIRTY] += 1


@njit(**INLINE)
def _solve(s):
    """New rates for all that shares links, directly or not, with what has begun or left."""
    s.counts[MARK] += 1
    for i in range(s.counts[DIRTY]):
        link = s.dirty[i]
        s.links[link].dirty = 0
        if s.links[link].mark != s.counts[MARK] and s.links[link].flows:
            num_links, num_members = _reach(s, link)
            _fill(s, num_links, num_members)
            _set_rates(s, num_members)
    s.counts[DIRTY] = 0


@njit(**INLINE)
def _reach(s, link):
    """The links and transfers that `link` is connected with, into `component` and `members`."""
    mark, hops = s.counts[MARK], s.nodes.shape[1]
    s.component[0] = link
    s.links[link].mark = mark
    num_links, num_members, at = 1, 0, 0
    while at < num_links:
        node = s.links[s.component[at]].head
        at += 1
        while node >= 0:
            t, hop = node // hops, node % hops
            transfer = s.transfers[t]
            if transfer.mark != mark:
                transfer.mark = mark
                s.members[num_members] = t
                num_members += 1
                for other in range(transfer.hops):
                    near = s.routes[transfer.route + other]
                    if s.links[near].mark != mark:
                        s.links[near].mark = mark
                        s.component[num_links] = near
                        num_links += 1
            node = s.nodes[t, hop, 0]
    return num_links, num_members


@njit(**INLINE)
def _fill(s, num_links, num_members):
    """Progressive filling: again and again the link with the least to give settles its transfers."""
    hops = s.nodes.shape[1]
    for i in range(num_links):
        link = s.links[s.component[i]]
        link.left, link.open = link.capacity, link.flows
    for i in range(num_members):
        s.transfers[s.members[i]].new_rate = -1.0
    unsettled = num_members
    while unsettled:
        least, share = -1, np.inf
        for i in range(num_links):
            link = s.links[s.component[i]]
            if link.open and (least < 0 or link.left / link.open < share):
                least, share = s.component[i], link.left / link.open
        node = s.links[least].head
        while node >= 0:
            t, hop = node // hops, node % hops
            transfer = s.transfers[t]
            if transfer.new_rate < 0:
                transfer.new_rate = share
                unsettled -= 1
                for other in range(transfer.hops):
                    link = s.links[s.routes[transfer.route + other]]
                    link.left = max(0.0, link.left - share)
                    link.open -= 1
            node = s.nodes[t, hop, 0]


@njit(**INLINE)
def _set_rates(s, num_members):
    for i in range(num_members):
        transfer = s.transfers[s.members[i]]
        if transfer.new_rate != transfer.rate:
            passed_s = s.clock[0] - transfer.since_s
            transfer.left_bytes = max(0.0, transfer.left_bytes - transfer.rate * passed_s)
            transfer.since_s, transfer.rate = s.clock[0], transfer.new_rate
            transfer.key = s.clock[0] + transfer.left_bytes / transfer.rate if transfer.rate > 0 else np.inf
            _down(s, _up(s, transfer.position))


@njit(**INLINE)
def _before(s, a, b):
    one, other = s.transfers[a], s.transfers[b]
    return one.key < other.key or (one.key == other.key and one.sequence < other.sequence)


@njit(**INLINE)
def _place(s, position, t):
    s.heap[position] = t
    s.transfers[t].position = position


@njit(**INLINE)
def _push(s, t):
    _place(s, s.counts[HEAP], t)
    s.counts[HEAP] += 1
    _up(s, s.counts[HEAP] - 1)


@njit(**INLINE)
def _pop(s):
    top = s.heap[0]
    s.counts[HEAP] -= 1
    if s.counts[HEAP]:
        _place(s, 0, s.heap[s.counts[HEAP]])
        _down(s, 0)
    return top


@njit(**INLINE)
def _up(s, position):
    t = s.heap[position]
    while position > 0 and _before(s, t, s.heap[(position - 1) // 2]):
        _place(s, position, s.heap[(position - 1) // 2])
        position = (position - 1) // 2
    _place(s, position, t)
    return position


@njit(**INLINE)
def _down(s, position):
    t = s.heap[position]
    while True:
        child = 2 * position + 1
        if child >= s.counts[HEAP]:
            break
        if child + 1 < s.counts[HEAP] and _before(s, s.heap[child + 1], s.heap[child]):
            child += 1
        if not _before(s, s.heap[child], t):
            break
        _place(s, position, s.heap[child])
        position = child
    _place(s, position, t)
