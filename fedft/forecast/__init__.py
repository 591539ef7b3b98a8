"""What a run will take before anything starts: bytes on the wire, memory, seconds. Plain formulas of plain values.

    anatomy       what a base model is made of, read off its modules: widths, layers, what has how many numbers
    activations   bytes that a training pass keeps until its gradients
    memory        bytes of a client's process at its peak, part by part
    seconds       operations of a step, and how long a round takes
    messages      bytes of plans and updates, from shapes
    rows          what is known of the rows of clients
    work          all of these for one client's `Work`
    clients       and for all clients and rounds of a run
    remedies      the cheapest change that makes a client fit
    probe         what passes of the real model take on this machine

But for `probe` no weights are needed, and no clock is read. `fedft plan` and the header of a run show what comes out; a
planner has it as `Roster.forecast`.
"""
