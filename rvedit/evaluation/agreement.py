"""Agreement of judges with people, beside that of people among themselves, which is the ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvedit.evaluation.aggregate import Estimate, Values, mean_of
from rvedit.evaluation.association import preference_association, score_association
from rvedit.evaluation.bootstrap import Statistic, bootstrap
from rvedit.evaluation.human_labels import AXIS_NAMES, MEAN, HumanLabels, Key
from rvedit.evaluation.judge import read_verdicts, scores_by_judge
from rvedit.evaluation.krippendorff import alpha_statistic
from rvedit.evaluation.scores import AXES
from rvedit.evaluation.verdict import Verdict
from rvedit.io.errors import UserError

MIN_LEFT_OUT = 5
"""Number of labels from which on a rater is compared with the others."""
OVERALL = "overall"


@dataclass(frozen=True)
class Ceiling:
    """Agreement of people among themselves, and of the judge where one of them is left out.

    All but alpha are means over raters: of each against the mean of the others, and of the judge against the
    same mean. That is noisier than the mean of all, which the judge alone can be compared with.
    """

    alpha: Estimate | None
    """Krippendorff's alpha, for an ordinal scale."""
    spearman: Estimate | None
    kendall: Estimate | None
    accuracy: Estimate | None
    judge_spearman: Estimate | None
    judge_kendall: Estimate | None
    judge_accuracy: Estimate | None


@dataclass(frozen=True)
class HumanAgreement:
    """Agreement of a judge with people on an axis; None where it is undefined, as if all are tied."""

    items: int
    labels: int
    """Number of labeled edits, or of labeled pairs of edits."""
    raters: int
    spearman: Estimate | None
    kendall: Estimate | None
    accuracy: Estimate | None
    ceiling: Ceiling | None
    """None if no item has two raters."""


@dataclass(frozen=True)
class AgreementReport:
    """Agreement by judge, category (the first is "overall") and axis."""

    kind: str
    """scores or preferences."""
    judges: dict[str, dict[str, dict[str, HumanAgreement]]]
    unknown: tuple[str, ...]
    """Labels of edits that no judged folder has, as text."""
    unlabeled: int
    """Number of judged edits without a label."""


@dataclass(frozen=True)
class LabeledRow:
    """A labeled edit, or pair of edits."""

    item: str
    judge: float
    """The judge's score, or its preference for the left edit."""
    human: dict[str, float]
    """Label by rater."""


def compare_with_people(labels: HumanLabels, folders: Mapping[str, Path], seed: int = 0) -> AgreementReport:
    """Return the agreement of judged folders, by editor, with people.

    Scores are of the edits of one folder; preferences are between the editors' folders. Raises UserError if a
    folder is not judged, or nothing that is labeled is judged.
    """
    if labels.kind == "scores" and len(folders) > 1:
        raise UserError(f"{labels.file}: has scores of one editor's edits: name one judged folder")
    if labels.kind == "preferences" and len(folders) < 2:
        editors = sorted({name for keys in labels.by_axis.values() for key in keys for name in key[1:]})
        raise UserError(
            f"{labels.file}: compares editors: name the judged folder of each as NAME=FOLDER, with the names "
            f"{', '.join(editors)}"
        )
    verdicts = {editor: read_verdicts(folder) for editor, folder in folders.items()}
    if len({verdict.protocol for of_editor in verdicts.values() for verdict in of_editor}) > 1:
        raise UserError("the folders were judged by different protocols, whose scales cannot be compared")
    known = _Edits(verdicts)
    judges = list(dict.fromkeys(name for of_editor in known.scores.values() for name in of_editor))
    unknown = sorted({key for keys in labels.by_axis.values() for key in keys if not known.edits_of(key)})
    results = {name: _by_category(labels, known, name, seed) for name in judges}
    results = {name: categories for name, categories in results.items() if categories}
    if not results:
        first = ", ".join(unknown[0]) if unknown else "none"
        raise UserError(
            f"{labels.file}: labels nothing that is scored in {', '.join(map(str, folders.values()))}; its "
            f"first label of an edit that was not judged: {first}"
        )
    labeled = {edit for keys in labels.by_axis.values() for key in keys for edit in known.edits_of(key)}
    num_edits = sum(len({v.item for v in of_editor}) for of_editor in verdicts.values())
    return AgreementReport(
        labels.kind, results, tuple(map(", ".join, unknown)), unlabeled=num_edits - len(labeled)
    )


class _Edits:
    """The scored edits of the folders, found by the names that labels use."""

    def __init__(self, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
        self.editors = tuple(verdicts)
        self.category = {v.item: v.category for of_editor in verdicts.values() for v in of_editor}
        self.scores: dict[str, dict[str, dict[str, Values]]] = {}
        """Editor -> judge -> item -> its scores on the axes and their mean."""
        for editor, of_editor in verdicts.items():
            self.scores[editor] = {
                judge: {
                    item: np.array([*(mean := mean_of(repeats)).values, mean.mean])
                    for items in categories.values()
                    for item, repeats in items.items()
                }
                for judge, categories in scores_by_judge(of_editor).items()
            }
        self._ids = {editor: _ids_by_name(of_editor) for editor, of_editor in verdicts.items()}

    def edits_of(self, key: Key) -> list[tuple[str, str]]:
        """Return the (editor, item) of a label's edits; empty if one of them is unknown."""
        item, editors = key[0], key[1:] or self.editors[:1]
        found = []
        for editor in editors:
            ids = self._ids.get(editor, {})
            # A label may name the path of the edit on another machine.
            if name := next((n for n in (item, Path(item).name, Path(item).stem) if n in ids), None):
                found.append((editor, ids[name]))
        return found if len(found) == len(editors) else []

    def value(self, judge: str, axis: str, edits: list[tuple[str, str]]) -> float | None:
        """Return the judge's score of an edit, or the difference of two; None if one was not scored."""
        index = (*AXES, MEAN).index(axis)
        scores = [self.scores[editor].get(judge, {}).get(item) for editor, item in edits]
        values = [float(axes[index]) for axes in scores if axes is not None]
        if not edits or len(values) < len(edits):
            return None
        return values[0] - (values[1] if len(values) > 1 else 0.0)


def _ids_by_name(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Return item ids by id, and by the path, name and stem of the edit where these are unambiguous."""
    names: dict[str, set[str]] = {}
    for verdict in verdicts:
        edited = Path(verdict.edited)
        for name in (verdict.edited, edited.name, edited.stem):
            names.setdefault(name, set()).add(verdict.item)
    unique = {name: next(iter(ids)) for name, ids in names.items() if len(ids) == 1}
    return unique | {verdict.item: verdict.item for verdict in verdicts}


def _by_category(
    labels: HumanLabels, known: _Edits, judge: str, seed: int
) -> dict[str, dict[str, HumanAgreement]]:
    """Return a judge's agreement by category and axis, without axes that nothing was labeled on."""
    results: dict[str, dict[str, HumanAgreement]] = {}
    for axis in dict.fromkeys(AXIS_NAMES.values()):
        rows: dict[str, list[LabeledRow]] = {OVERALL: []}
        for key, human in sorted(labels.by_axis.get(axis, {}).items()):
            edits = known.edits_of(key)
            value = known.value(judge, axis, edits)
            if value is not None:
                row = LabeledRow(edits[0][1], value, human)
                rows[OVERALL].append(row)
                rows.setdefault(known.category[row.item], []).append(row)
        for category, of_category in rows.items():
            if of_category:
                result = agreement_of_rows(of_category, labels.kind == "preferences", seed)
                results.setdefault(category, {})[axis] = result
    return results


def agreement_of_rows(rows: Sequence[LabeledRow], are_preferences: bool, seed: int) -> HumanAgreement:
    """Return the agreement on an axis, with intervals of a bootstrap over items.

    A person's label is compared as it is: the human side is the mean over raters.
    """
    items = list(dict.fromkeys(row.item for row in rows))
    raters = sorted({rater for row in rows for rater in row.human})
    ratings = np.array([[row.human.get(rater, np.nan) for rater in raters] for row in rows])
    group = np.array([items.index(row.item) for row in rows])
    associate = preference_association if are_preferences else score_association
    judge = np.array([row.judge for row in rows])
    parts: list[Statistic] = [associate(judge, np.nanmean(ratings, axis=1))]
    has_ceiling = bool(((~np.isnan(ratings)).sum(axis=1) > 1).any())
    if has_ceiling:
        parts.append(_alpha(ratings, are_preferences))
        parts += [left_out_association(ratings, are_preferences, who) for who in (None, judge)]

    def statistic(weights: Values) -> Values:
        of_rows = weights[:, group]
        return np.concatenate([part(of_rows) for part in parts], axis=1)

    spearman, kendall, accuracy, *people = bootstrap(statistic, len(items), seed)
    ceiling = Ceiling(*people) if has_ceiling else None
    return HumanAgreement(len(items), len(rows), len(raters), spearman, kendall, accuracy, ceiling)


def _alpha(ratings: Values, are_preferences: bool) -> Statistic:
    """Return ordinal alpha; preferences count in both orders, as which edit comes first is arbitrary."""
    if not are_preferences:
        return alpha_statistic(ratings)
    mirrored = alpha_statistic(np.concatenate([ratings, -ratings]))
    return lambda weights: mirrored(np.concatenate([weights, weights], axis=1))


def left_out_association(ratings: Values, are_preferences: bool, judge: Values | None = None) -> Statistic:
    """Return the coefficients of each rater against the mean of the others, as the mean over raters.

    With the scores of a judge, they are its coefficients against the same means, on the same rows. Left out
    are raters with fewer than MIN_LEFT_OUT labels that others have given, too.
    """
    associate = preference_association if are_preferences else score_association
    parts: list[tuple[NDArray[np.intp], Statistic]] = []
    for rater in range(ratings.shape[1]):
        others = np.delete(ratings, rater, axis=1)
        shared = ~np.isnan(ratings[:, rater]) & ~np.isnan(others).all(axis=1)
        if shared.sum() >= MIN_LEFT_OUT:
            means = np.nanmean(others[shared], axis=1)
            compared = ratings[:, rater] if judge is None else judge
            parts.append((np.flatnonzero(shared), associate(compared[shared], means)))

    def coefficients(weights: Values) -> Values:
        if not parts:
            return np.full((len(weights), 3), np.nan)
        values = np.stack([part(weights[:, rows]) for rows, part in parts])
        defined = ~np.isnan(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0))

    return coefficients
