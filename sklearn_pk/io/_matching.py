"""Matching of samples and rows of expression, with a record of the unmatched ones."""

# SPDX-License-Identifier: BSD-3-Clause

from bisect import bisect_left
from collections import defaultdict
from html import escape

import numpy as np
import pandas as pd
from sklearn.utils import Bunch, _safe_indexing

from ..utils import check_expression
from ..utils._patients import infer_groups
from ..utils._reporting import warn_user
from ..utils._validation import name_some, plain_name, sample_names_of
from ._links import Links, prefixes, stem_of, tissue_kind


class MatchedSamples(Bunch):
    """Matched samples, which print as three lines."""

    def _lines(self):
        how, n_rows = self.audit["how"], self.n_rows
        matched = self.audit["row"].notna()
        n_patients = len(np.unique(self.patients))
        lines = [
            f"matched: {matched.sum()} of {len(how)} samples, of {n_patients} patients"
            f" ({_count(how[matched])})"
        ]
        lines.append(f"left out: {(~matched).sum()} samples{_reasons(how[~matched])}")
        unused = self.unused_rows
        some = f", such as {name_some(unused)}" if unused else ""
        lines.append(f"unused: {len(unused)} of {n_rows} rows of expression{some}")
        return lines

    def __repr__(self):
        return "\n".join(self._lines())

    __str__ = __repr__

    def _repr_html_(self):
        rows = (line.partition(": ")[::2] for line in self._lines())
        cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
        return f"<table>{cells}</table>"


def _count(how):
    return ", ".join(f"{what}: {n}" for what, n in how.value_counts().items())


def _reasons(how):
    """Return the reasons of samples without a row, with the number and the first of each."""
    counts = how.value_counts()
    shown = [
        f"{reason}: {n}, such as {how.index[how == reason][0]!r}" for reason, n in counts.items()
    ]
    text = "; ".join(shown[:_MAX_REASONS])
    left = counts[_MAX_REASONS:].sum()
    return (f" ({text}; other reasons: {left})" if left else f" ({text})") if len(how) else ""


_MAX_REASONS = 4


def _fits(own, other):
    """Return whether a sample may get a row, by their tissues; None counts as a tumour."""
    if own == other:
        return True
    if own is None or other is None:
        return tissue_kind(own or other) == "tumour"
    kinds = {tissue_kind(own), tissue_kind(other)}
    return len(kinds) == 1 and bool({own, other} & kinds)


class _Rows:
    """Rows of expression, indexed by name, sample and patient."""

    def __init__(self, identities, patients, same_rows):
        self._identities, self._same_rows = identities, same_rows
        self._by_stem, self._by_key = defaultdict(list), defaultdict(list)
        self._by_sample, self._by_patient = defaultdict(list), defaultdict(list)
        for row, found in enumerate(identities):
            self._by_stem[found.stem].append(row)
            self._by_key[found.key].append(row)
            for sample in found.samples:
                self._by_sample[sample].append(row)
            for patient in {found.patient, patients and plain_name(patients[row])} - {None}:
                self._by_patient[patient].append(row)
        self._keys = sorted(self._by_key)

    def _longer(self, key):
        """Return rows whose names go on after a key and a dash."""
        start, rows = key + "-", []
        for at in range(bisect_left(self._keys, start), len(self._keys)):
            if not self._keys[at].startswith(start):
                break
            rows += self._by_key[self._keys[at]]
        return rows

    def _candidates(self, sample):
        """Yield rows, how they were found, and whose they are, from the closest on."""
        yield self._by_stem.get(sample.stem), "name", "that name"
        yield self._by_key.get(sample.key), "name", "that name"
        for name in sample.samples:
            for rows in (self._by_key.get(name), self._longer(name), self._by_sample.get(name)):
                yield rows, "sample in links", "that sample"
            yield self._by_patient.get(name), "patient", "that patient"
        if sample.patient:
            rows = self._by_patient.get(sample.patient) or self._by_key.get(sample.patient)
            rows = rows or self._longer(sample.patient)
            if sample.cohort:
                same = [row for row in rows if self._tissue(row) == sample.tissue is not None]
                yield same, f"{sample.cohort} sample", "that sample"
                yield rows, f"{sample.cohort} patient", "that patient"
                return
            yield rows, "patient", "that patient"
        yield self._longer(sample.key), "start of the row's name", "that name"
        for prefix in prefixes(sample.key):
            rows = [*self._by_key.get(prefix, ()), *self._by_patient.get(prefix, ())]
            yield list(dict.fromkeys(rows)), "start of the name", "that name"

    def _tissue(self, row):
        return self._identities[row].tissue

    def find(self, sample):
        """Return the candidate rows of a sample, and how they were matched or why not."""
        for rows, how, whose in self._candidates(sample):
            if not rows:
                continue
            if how == "name" and sample.tissue is None:
                return rows, how
            fitting = [row for row in rows if self._may_get(sample, row)]
            is_known = sample.tissue is not None or sample.cohort in ("TCGA", "TARGET")
            tissues = {tissue_kind(self._tissue(row)) for row in rows}
            if fitting and not is_known and "normal" in tissues:
                return [], (
                    f"the rows of {whose} are of tumour and of normal tissue, the sample is not "
                    "said to be of one: pass links="
                )
            if fitting:
                return fitting, how
            types = sorted({self._tissue(row) or "not named" for row in rows})
            own = f", the sample of type {sample.tissue}" if sample.tissue else ""
            return [], f"the rows of {whose} are of sample type {', '.join(types)}{own}"
        return [], f"no row of that {'patient' if sample.cohort else 'name'}"

    def _may_get(self, sample, row):
        # All tissues of donors of GTEx are normal, and none is as good as another.
        if sample.cohort == "GTEx" == self._identities[row].cohort:
            return sample.tissue == self._tissue(row)
        return _fits(sample.tissue, self._tissue(row))

    def choose(self, sample):
        """Return the row of a sample or None, and how it was matched or why not."""
        rows, how = self.find(sample)
        if len(set(self._same_rows[rows])) > 1:
            return None, f"{len(rows)} different rows, all by {how}"
        return (rows[0], how) if rows else (None, how)


def _given_patients(expression, patients):
    """Return the given patient of each row, or None."""
    if patients is None:
        return None
    given = pd.Series(patients)
    if not isinstance(patients, pd.Series):
        given.index = expression.index[: len(given)]
    given.index = given.index.map(str)
    missing = expression.index.difference(given.index[given.notna()])
    if len(missing):
        raise ValueError(
            f"patients: {len(missing)} rows of expression have no patient: {name_some(missing)}."
        )
    return given[expression.index].astype(str).str.strip().tolist()


def _warn_of_unknown_tissue(samples, found):
    """Warn of samples of CPTAC that got a row, though they may be of normal tissue."""
    unknown = [
        sample.stem
        for sample, (row, how) in zip(samples, found, strict=True)
        if row is not None and how == "CPTAC patient" and sample.tissue is None
    ]
    if unknown:
        warn_user(
            f"The names of {len(unknown)} samples of CPTAC, such as {unknown[0]!r}, do not say "
            "whether they are of tumour or of normal tissue. They are matched as tumours. Pass "
            "links=, a table with their types of tissue."
        )


def match_samples(X, expression, *, patients=None, links=None):
    """
    Match samples with rows of expression, and report what was not matched and why.

    A sample is matched by its full name, without folders and file suffixes. Otherwise, a barcode
    (TCGA, TARGET, HCMI, CPTAC, GTEx) is matched by patient and sample type, or by patient if one
    of both has no type, which then counts as a tumour. Other names are matched with a row whose
    name is the beginning of theirs, or goes on after it. `links` says what names do not: the
    sample, patient or tissue of a slide. Dashes, dots, underscores and spaces are alike, and so
    are upper and lower case.

    Parameters
    ----------
    X : FeatureBags, list of FeatureBag or of paths, or DataFrame of n samples
        Samples with names: of slides, or the index of a DataFrame.
    expression : DataFrame of shape (n_rows, n_genes)
        One row per slide, sample or patient, indexed by name.
    patients : Series or array-like of shape (n_rows,), default=None
        Patient of each row of `expression`; a Series is matched by name. None takes the
        patient in `links` or in the barcode of a row; other rows are patients of their own unless
        their values are equal.
    links : DataFrame, dict, str or path-like, default=None
        What belongs together: a table with columns of slides, samples, patients and types of
        tissue, of which some may be missing, or its file. Recognised are sample sheets and
        metadata of GDC, tables of STAMP and marugoto (``PATIENT, FILENAME``) and of CLAM
        (``case_id, slide_id``), and other usual names of columns. A dict maps slides to the names
        of rows or of patients. Slides and rows of expression may be named by any of the columns,
        such as the UUID of a file.

    Returns
    -------
    matched : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, which prints as three lines: matched, left out and why, unused. It
        has the attributes:

        X : list, FeatureBags or DataFrame of n_matched samples
            Samples that have a row, in their order.
        expression : DataFrame of shape (n_matched, n_genes)
            Their rows, indexed by the names of the samples.
        patients : ndarray of shape (n_matched,), str
            Patient of each, for use as `groups`.
        audit : DataFrame of n samples
            One row per sample: ``row`` of expression (None if there is none), ``patient`` and
            ``how`` it was matched, or why not.
        unused_rows : list of str
            Rows of expression without a sample, except for other slides of matched patients.
        n_rows : int
            Number of rows of expression.

    Raises
    ------
    FileNotFoundError
        If `links` is the path of a file that does not exist.
    TypeError
        If `expression` is not a DataFrame, or not numeric.
    ValueError
        If `X` has no names or repeated names, if nothing matches, if a row lacks a patient, if
        `expression` contains NaN, or if `links` cannot be understood, names nothing in `X` or
        `expression`, or contradicts itself or a barcode.

    See Also
    --------
    read_expression : Reads expression and patients.

    Notes
    -----
    Several rows for a sample are allowed if they are equal, as in tables with one row per slide;
    if they differ, the sample is omitted, as reported in `audit`.

    Normal tissue is matched with normal tissue only. A name says what it is by the code of a TCGA
    barcode, or a part such as ``N``, ``normal`` or ``T``. A donor of GTEx has many tissues: slide
    and row need the same, as ``GTEX-1117F-0226``. The names of slides of CPTAC do not say what
    they are. If there are rows of tumour and of normal tissue, such a slide is left out; if there
    is one row, it is matched with a warning. Pass `links` with their types.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn_pk.io import match_samples
    >>> X = pd.DataFrame({"area": [0.1, 0.2, 0.3]}, index=["P1-a", "P1-b", "P3-a"])
    >>> expression = pd.DataFrame({"TP53": [5.0, 6.0]}, index=["P1", "P2"])
    >>> matched = match_samples(X, expression)
    >>> matched.expression
          TP53
    P1-a   5.0
    P1-b   5.0
    >>> matched.audit["how"].tolist()
    ['start of the name', 'start of the name', 'no row of that name']
    >>> matched.unused_rows
    ['P2']
    >>> print(matched)
    matched: 2 of 3 samples, of 1 patients (start of the name: 2)
    left out: 1 samples (no row of that name: 1, such as 'P3-a')
    unused: 1 of 2 rows of expression, such as 'P2'

    With a table of slides, as STAMP has it:

    >>> slides = pd.DataFrame({"area": [0.1, 0.2]}, index=["H19.1", "H19.2"])
    >>> links = pd.DataFrame({"PATIENT": ["P1", "P2"], "FILENAME": ["H19.1.h5", "H19.2.h5"]})
    >>> match_samples(slides, expression, links=links).audit["row"].tolist()
    ['P1', 'P2']
    """
    names = sample_names_of(X)
    if names is None:
        raise ValueError(
            "X must have sample names: bags with a slide (FeatureBag(features, "
            "slide='NAME')), paths, or a DataFrame whose index has names."
        )
    if not names:
        raise ValueError("X has no samples.")
    labels = [stem_of(name) for name in names]
    repeated = pd.Index(labels)[pd.Index(labels).duplicated()].unique()
    if len(repeated):
        raise ValueError(f"X has {len(repeated)} repeated names: {name_some(repeated)}.")
    if not isinstance(expression, pd.DataFrame):
        raise TypeError(
            f"expression must be a DataFrame indexed by sample, got {type(expression).__name__}."
        )
    values = check_expression(expression, estimator_name="match_samples")[0]
    expression = expression.set_axis(expression.index.map(str))
    # Rows with equal values; with one gene they may be equal by chance, which does no harm here.
    same_rows = infer_groups(values)
    first = np.unique(same_rows, return_index=True)[1]
    given = _given_patients(expression, patients)
    known = Links(links)
    identities = [known.describe(name) for name in expression.index]
    samples = [known.describe(name) for name in names]
    if known and not known.used:
        raise ValueError(
            f"links names neither the samples of X (such as {labels[0]!r}) nor the rows of "
            f"expression (such as {expression.index[0]!r}); it names {known.example!r}."
        )
    names_of_first = expression.index.to_numpy(dtype=str)[first[same_rows]]
    of_patient = np.array(
        given
        or [each.label or name for each, name in zip(identities, names_of_first, strict=True)],
        dtype=str,
    )
    rows = _Rows(identities, given, same_rows)
    found = [rows.choose(sample) for sample in samples]
    _warn_of_unknown_tissue(samples, found)
    kept = np.array([i for i, (row, _) in enumerate(found) if row is not None], dtype=int)
    if not len(kept):
        raise ValueError(
            f"None of the {len(names)} samples of X (such as {labels[0]!r}) has a row among the "
            f"{len(expression)} of expression (such as {expression.index[0]!r}): "
            f"{found[0][1]}."
        )
    chosen = [found[i][0] for i in kept]
    patients = of_patient[chosen]
    if given is None:
        # A row may not say whose it is, but the links of its slide.
        labels_of = [samples[i].label or patient for i, patient in zip(kept, patients, strict=True)]
        own = [identities[row].label is None for row in chosen]
        patients = np.where(own, np.array(labels_of, dtype=str), patients)
    audit = pd.DataFrame(
        {
            "row": [None if row is None else expression.index[row] for row, _ in found],
            "patient": None,
            "how": [how for _, how in found],
        },
        index=pd.Index(labels, name="sample"),
        dtype=object,
    )
    audit.iloc[kept, audit.columns.get_loc("patient")] = patients
    matched = expression.iloc[chosen].set_axis([labels[i] for i in kept])
    # Other slides of a patient with the same row count as used.
    used = set(zip(same_rows[chosen], of_patient[chosen], strict=True))
    return MatchedSamples(
        X=_take(X, kept),
        expression=matched,
        patients=patients,
        audit=audit,
        unused_rows=[
            name
            for name, *key in zip(expression.index, same_rows, of_patient, strict=True)
            if tuple(key) not in used
        ],
        n_rows=len(expression),
    )


def _take(X, kept):
    taken = _safe_indexing(X, kept)
    if hasattr(X, "failures"):  # FeatureBags
        return type(X)(taken, X.failures)
    return taken
