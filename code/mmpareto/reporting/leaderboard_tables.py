"""Tables of a leaderboard: a row per method with its tests, the measures of balance, ranks over datasets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mmpareto.escape import counted, markdown_text
from mmpareto.reporting.balance import LATE, MEASURES, place, with_gaps
from mmpareto.reporting.comparison import markdown_table, spread
from mmpareto.reporting.ranking import Ranking
from mmpareto.reporting.significance import DEFAULTS, LEVEL, SAME, holm, paired_p
from mmpareto.reporting.summary import p_text
from mmpareto.selection import COMBINATIONS, LEAD, RULES, SELECTED_ON_TEST, TIE

ALL = "All datasets"
JOINT, SINGLE = "joint", "best single"
RATE = "learning_rate"
# trials that no rule chooses, and what is said of them
COUNTED = {
    "diverged": "Diverged trials (a loss or gradient was not finite)",
    "idle": "Trials that ended before the method acted, of which none is chosen",
}
ALL_SELECTED_ON_TEST = (
    f"**{SELECTED_ON_TEST}**: the checkpoints of all runs were selected on the test split, so their accuracies are too "
    "favourable."
)
NOT_TESTED = " ?"  # behind the name of a row that could not be tested against the first one
CAPTION = (
    "Test accuracy in percent, mean ± sample standard deviation; in brackets the 95 % bootstrap interval of the "
    "mean (of five seeds it covers the true mean in about 83 % of cases). Effect of tuning: chosen values less the "
    "recipe's, mean over seeds. Difference from the baseline's joint head, of the joint head and of all heads (the "
    "sum of their log-probabilities): mean over seeds, the 95 % interval of a paired t-test, not corrected, and its"
    " two-sided p, corrected over the column after Holm. p covers the random seed alone: not the choice of the test"
    " samples, nor the search, which is run once. Rows are in the order of their means. A row marked = does not "
    "differ significantly from the first one: p of a paired test against it, corrected after Holm, is not below "
    f"{LEVEL}; one marked ? could not be tested."
)
TOGETHER = COMBINATIONS["logarithms"]
_RESAMPLES = 10_000


def result_rows(content: Mapping[str, Any]) -> pd.DataFrame:
    """A line per result, its scores in columns."""
    return pd.DataFrame([{**row, **row["scores"]} for row in content["results"]])


def tables(content: Mapping[str, Any], pictures: Mapping[str, str] | None = None) -> str:
    """The leaderboard in Markdown: how it was made, a table per dataset, one over all of them.

    pictures  {dataset, or ALL: path of its figure}
    """
    protocol, rows = content["protocol"], result_rows(content)
    parts = [worded(protocol)]
    shown = {dataset: f"![{markdown_text(dataset)}]({path})" for dataset, path in (pictures or {}).items()}
    for dataset in dict.fromkeys(rows["dataset"][rows["tuned"]]):
        of_dataset = rows[rows["dataset"] == dataset]
        parts += [
            f"## {markdown_text(dataset)}",
            ALL_SELECTED_ON_TEST if content["settings"].get(dataset, {}).get("selected_on") == "test" else "",
            not_searched(content["settings"].get(dataset, {})),
            dataset_table(of_dataset),
            *(counted_trials(kind, content[kind].get(dataset, {}), protocol["trials"]) for kind in COUNTED),
            shown.get(dataset, ""),
            balance_table(of_dataset[of_dataset["tuned"]], content["settings"].get(dataset, {})),
        ]
    tuned = rows[rows["tuned"]]
    if tuned["dataset"].nunique() > 1:
        parts += [f"## {ALL}", over_datasets(tuned), shown.get(ALL, "")]
    return "\n\n".join(filter(None, parts)) + "\n"


def worded(protocol: Mapping[str, Any]) -> str:
    """How values were chosen, in a sentence or two."""
    budget = (
        "as many epochs as the reported runs" if protocol["budget"] is None else counted(protocol["budget"], "epoch")
    )
    seeds = ", ".join(map(str, protocol["trial_seeds"]))
    trials, sampler = counted(protocol["trials"], "trial"), markdown_text(protocol["sampler"])
    return (
        f"Every method: {trials} ({sampler}), each of {budget}, with seed {seeds}; chosen by "
        f"{RULES[protocol['rule']]}. Then fresh seeds.\n\n{CAPTION}"
    )


def not_searched(settings: Mapping[str, Any]) -> str:
    """A sentence on the rates and weight decays of all methods; "" where nothing is known."""
    other = [f"{key} {settings[key]}" for key in ("learning_rate", "weight_decay") if key in settings]
    return f"The same for all methods: {markdown_text(', '.join(other))}." if other else ""


def dataset_table(rows: pd.DataFrame) -> str:
    """A row per method, the highest joint mean first."""
    tuned = rows[rows["tuned"]]
    joint, of_recipe = _by_seed(tuned, JOINT), _by_seed(rows[~rows["tuned"]], JOINT)
    order = in_order(joint.mean())
    marks, against = _marks(joint, order[0]), _against_baseline(tuned, joint)
    lines = []
    for method in order:
        runs, accuracies = tuned[tuned["method"] == method], joint[method].dropna()
        line = {
            "method": markdown_text(method) + marks[method],
            "seeds": str(len(accuracies)),
            JOINT: f"{spread(accuracies.tolist())} {interval(accuracies)}".strip(),
            LEAD: spread((runs[JOINT] - runs[SINGLE]).tolist()),
        }
        line |= {label: spread(runs[label].dropna().tolist()) for label in COMBINATIONS.values() if label in runs}
        if method in of_recipe and (effect := (accuracies - of_recipe[method]).dropna()).size:
            line["effect of tuning"] = f"{effect.mean():+.1f}"
        line |= {column: cells.get(method, "-") for column, cells in against.items()}
        lines.append(line | {"seconds a run": f"{runs['seconds'].mean():.0f}"})
    return markdown_table(pd.DataFrame(lines).fillna("n/a"))


def _by_seed(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """A score: a line per seed, a column per method."""
    return rows.pivot_table(index="seed", columns="method", values=score)


def _against_baseline(rows: pd.DataFrame, joint: pd.DataFrame) -> dict[str, dict[str, str]]:
    """{column: {method: cell}} of differences from the baseline's joint head, and their p; empty without a baseline."""
    baseline = next((method for method in DEFAULTS if method in joint), None)
    if baseline is None:
        return {}
    compared = {(f"minus {baseline}", "p"): joint.drop(columns=baseline)}
    if TOGETHER in rows:
        compared[f"all heads minus {baseline}", "p, all heads"] = _by_seed(rows, TOGETHER)
    columns: dict[str, dict[str, str]] = {}
    for (minus, p), accuracies in compared.items():
        columns[minus] = {method: difference(accuracies[method] - joint[baseline]) for method in accuracies}
        columns[p] = {method: p_text(value) for method, value in paired(accuracies, joint[baseline]).items()}
    return columns


def _marks(accuracies: pd.DataFrame, first: str) -> dict[str, str]:
    """{method: what stands behind its name}: whether it differs significantly from the first one, by `paired`."""
    p_values = paired(accuracies, accuracies[first])
    marks = {}
    for method in accuracies:
        gains = (accuracies[method] - accuracies[first]).dropna()
        same = len(gains) > 1 and not gains.any()  # which no t-test says
        if method == first or p_values.get(method, 1.0) < LEVEL:
            marks[method] = ""
        else:
            marks[method] = " =" if method in p_values or same else NOT_TESTED
    return marks


def difference(gains: pd.Series) -> str:
    """The mean of differences by seed, and the 95 % interval of their t-test where there are two or more."""
    gains = gains.dropna()
    if gains.empty:
        return "-"
    mean = f"{gains.mean():+.1f}"
    if len(gains) < 2 or np.ptp(gains) <= SAME:
        return mean
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    return f"{mean} [{low:+.1f}, {high:+.1f}]"


def in_order(means: pd.Series) -> pd.Index:
    """Methods, the highest mean first; those that differ by rounding alone as they come."""
    return means.round(TIE).sort_values(ascending=False, kind="stable").index


def counted_trials(kind: str, numbers: Mapping[str, int], trials: int) -> str:
    """A sentence on the trials of a kind of COUNTED, by method."""
    listed = ", ".join(f"{markdown_text(method)} {number} of {trials}" for method, number in numbers.items())
    return f"{COUNTED[kind]}: {listed}." if listed else ""


def balance_table(rows: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    """A row per method in the order of `dataset_table`: means of the measures of balance.

    In brackets the number of seeds that have a measure, where not all have.
    """
    rows = with_gaps(rows.assign(architecture=settings.get("architecture", LATE)))
    names = sorted((name for name in rows if name.startswith(MEASURES) and rows[name].notna().any()), key=place)
    groups = rows.groupby("method")[[JOINT, *names]]
    means, counts = groups.mean(), groups.count()
    text = means.map(lambda value: "n/a" if pd.isna(value) else f"{value:.1f}")
    fewer = counts.lt(counts[JOINT], axis=0) & (counts > 0)
    text = text.where(~fewer, text + " (" + counts.astype(str) + ")")
    table = text.loc[in_order(means[JOINT]), names].reset_index()
    table["method"] = table["method"].map(markdown_text)
    return markdown_table(table.rename(columns=markdown_text)) if names else ""


def over_datasets(rows: pd.DataFrame) -> str:
    """Mean joint accuracy by dataset, mean rank over datasets, Friedman's test and Nemenyi's critical difference."""
    ranking = ranked(rows)
    missing = [name for name in rows["method"].unique() if ranking is None or name not in ranking.ranks.index]
    left_out = f"Not on all datasets, and left out: {', '.join(map(markdown_text, missing))}." if missing else ""
    if ranking is None:
        return left_out
    shown = ranking.scores.T.map(lambda value: f"{value:.1f}").assign(
        rank=ranking.ranks.map(lambda value: f"{value:.2f}")
    )
    shown = shown.loc[ranking.ranks.index].rename(index=markdown_text, columns=markdown_text)
    text = markdown_table(shown.rename_axis("method").reset_index())
    text = "\n\n".join(filter(None, [text, left_out]))
    if len(ranking.ranks) < 3:
        return text
    verdict = markdown_text(ranking.verdict)
    return (
        f"{text}\n\n{verdict} Ranks that differ by less than {ranking.critical_difference:.2f}, Nemenyi's "
        f"critical difference at {LEVEL}, do not differ significantly."
    )


def ranked(rows: pd.DataFrame) -> Ranking | None:
    """The methods that all datasets have, by their mean joint accuracy; None for one dataset, or no such method."""
    table = rows.pivot_table(index="dataset", columns="method", values=JOINT, sort=False).dropna(axis=1)
    return Ranking(table) if len(table) > 1 and table.shape[1] else None


def paired(accuracies: pd.DataFrame, reference: pd.Series) -> dict[str, float]:
    """{method: p, corrected after Holm} of paired t-tests of columns against other accuracies, over common seeds."""
    p_values: dict[str, float] = {}
    for method in accuracies:
        p = paired_p((accuracies[method] - reference).dropna().to_numpy())
        if p is not None:
            p_values[method] = p
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def interval(values: pd.Series) -> str:
    """The 95 % bootstrap interval of the mean (percentiles, fixed seed); "" for fewer than three values."""
    listed = values.to_numpy()
    if len(listed) < 3 or np.ptp(listed) == 0:
        return ""
    bounds = stats.bootstrap(
        (listed,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return f"[{bounds.low:.1f}, {bounds.high:.1f}]"
