"""The server's side of a run: rounds, who is asked, what is admitted, and the state that survives any crash.

    app                 `fedft server`: a deployment, from keys and addresses to the end of its run
    queue_runs          `fedft queue`: several runs of one server; queue_link: the link that they share
    open_run            open a run's folder, run it, write its results: for simulations, deployments and benches alike
    run_folder          the folder: made or taken up again, held by one process
    job                 what clients are told of a run, and the run's identifier
    federation          one run's fixed facts and its clients, with the plans of a round
    membership          who takes part, and the rank that each was dealt, for good
    loop                the engine: rounds, evaluations and lines of metrics, until the budget is spent
    round               one round of training; admitted: what it has and comes to; evaluation_round: one evaluation
    buffered, turns     rounds that do not wait: what goes on behind a round, and for how much it counts
    cohort              who is asked: drawn from the run's seed
    exchange, sending   letters out, answers in; traffic: what they cost, who was refused, who is to blame
    admission           whether an update counts; candidate_gates: whether a new state does
    checkpoint          states, plans and admitted updates on disk; spare_files: what may be written over;
                        attempt_numbers: what tells two attempts at a round apart
    archive             past rounds, kept on request; archive_check: whether all is there, and a round computed anew
    budget              when a run ends
    guards, guard       what stands between updates and their change; robust_sum: weights that liars cannot choose;
                        root_update: the server's own turn for them
    aggregation_error   how far the aggregate is from the exact mean
    run_outputs         config.toml, summary.json and model/
    sealed_post         letters to sites over a network that is not trusted: signed, sent again, answered once
    roster_file         the roster, read again when it changes; audit: audit.jsonl
    steering            what an operator changes of a run; between_rounds: when it holds; admin, admin_socket: how
    open_letter         when one such letter is due; site_reports: what sites say about themselves
    arrival_clock       what a deployment waits by
    succession_link     tells the sites of a server's new keys

One thread runs all of it; another one answers the admin socket. Not here: what a strategy does (`fedft.strategies`),
bytes of messages (`fedft.wire`), the network (`fedft.carriers`), reports and loggers (`fedft.reports`).
"""
