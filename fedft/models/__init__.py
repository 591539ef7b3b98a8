"""The resident base model, and how strategies read, write and probe it.

In this room: what a model can be for (`tasks`), loading (`load`, `resident`), the trainable parts of a model (`layout`:
`targets`, `experts`, `whole_modules`; `parameters`), the handle that strategies work on (`handle`) and its pieces
(`trained_values`, `forward_passes` and others), and export for other tools (`export`, `peft_names`). Kinds of adapters
are in `fedft.adapters`, training steps in `fedft.training`.
"""
