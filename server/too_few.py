"""Why a round has stayed below quorum, in one line, and what to do."""

from collections.abc import Collection, Mapping

from fedft.server.federation import Federation


def why(
    run: Federation,
    number: int,
    admitted: int,
    counted: int,
    attempts: int,
    barred: Collection[str],
    refused: Mapping[str, str] | None,
) -> str:
    """The line for a person whose run pauses.

    Args:
        run: with its quorum, and whether its clients are sites.
        number: of the round.
        admitted: updates that count.
        counted: clients of whom the quorum is taken; 0 where nobody was left to ask.
        attempts: that were made.
        barred: clients in quarantine.
        refused: the round's first refusal, see `Traffic.refused`.
    """
    quarantined = f"; quarantined: {', '.join(barred)}" if barred else ""
    if not counted:
        return f"round {number}: nobody is left to ask{quarantined}; run again to continue"
    few = f"round {number}: {admitted} of {counted} updates admitted"
    quorum = f"quorum is {run.quorum(counted)}{quarantined}"
    if run.deployed:
        return f"{few} in {attempts} attempts, {quorum}; run again to continue"
    if run.virtual:
        changed = "the same again would come of it; see [server] quorum, deadline_s and [clients] devices"
        return f"{few} in {attempts} attempts, {quorum}; {changed}"
    reason = f"; {refused['client']} was refused: {refused['reason']}" if refused else ""
    return f"{few}, {quorum}{reason}"
