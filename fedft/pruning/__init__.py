"""Pruning of heads and feed-forward channels while an adapter learns: the model's side of it.

In this room: which rows and columns go together (`groups`), what is left of a model (`kept`: one bit for each group),
running a model with the rest switched off (`masks`) or cut away (`slices`), what groups are worth by the gradients of
an adapter (`importance`), which go next (`schedule`), and adapters in coordinates of what is left (`cut_adapters`). Who
prunes how much, and how clients with unlike parts of a model are averaged, is a strategy's, in `fedft.strategies`.

    groups = adapted(layout.groups, layout.modules)                 refuses what cannot be pruned; on either side
    kept = everything(groups)                                       or from_words(groups, plan.tensors[...])
    with masked(handle.model, kept) as masks:
        term = Importance(handle.model, Sums(groups))               FirstOrder().with_term(term): gradients are read
        kept = next_kept(kept, term.sums.scores(kept), ratio)       at most 2 % of the weights at a time
        masks.set(kept); zero_pruned(handle.adapter(), kept)
    sent = cut(trained.delta, kept)                                 the server: scattered(update.delta, kept)
"""
