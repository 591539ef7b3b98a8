"""What a run will take before anything starts: bytes on the wire, memory, seconds. Plain formulas of plain values.

    anatomy       what a base model is made of, read off its modules: widths, layers, what has how many numbers
    activations   bytes that a training pass keeps until its gradients
    memory        bytes of a client's process at its peak, part by part
    seconds       operations of a step, and how long a round takes
    messages      bytes of plans and updates, from shapes
    work          all of these for one client's `Work`

No weights are needed, and no clock is read here. `fedft plan` and the header of a run show what comes out; a planner
has it as `Roster.forecast`.
"""
