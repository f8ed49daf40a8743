"""Tables that are doubtful as expression: columns of annotation, values that are not logged."""

# SPDX-License-Identifier: BSD-3-Clause

import re

import numpy as np

from ._reporting import callers_warn, warn_user
from ._validation import name_some, split_barcode

# Names of columns, in lower case and with underscores, that annotate genes or name samples.
ID_COLUMNS = (
    *("gene_id", "ensembl_id", "ensembl_gene_id", "ensembl", "geneid", "gene_ids", "ensemblid"),
    *("feature_id", "name", "id"),
)
SYMBOL_COLUMNS = (
    *("hugo_symbol", "gene_name", "symbol", "gene_symbol", "hgnc_symbol", "external_gene_name"),
    *("genesymbol", "gene_short_name", "feature_name", "gene_names", "description", "gene"),
    "genes",
)
ENTREZ_COLUMNS = ("entrez_gene_id", "entrez_id", "entrezgene", "entrezgene_id", "entrez", "ncbi_id")
GENE_COLUMNS = {
    *ID_COLUMNS, *SYMBOL_COLUMNS, *ENTREZ_COLUMNS,
    *("gene_type", "gene_biotype", "biotype", "type", "source", "phase", "score", "level", "tag"),
    *("chromosome", "chromosome_name", "chr", "chrom", "seqnames", "start", "end", "width"),
    *("strand",),
    *("start_position", "end_position", "length", "gene_length", "bp_length", "feature_length"),
    *("hgnc_id", "havana_gene", "transcript_id", "transcript_ids", "cytoband", "locus", "probe"),
    *("attrib_name", "hybridization_ref", "composite_element_ref", "cpg", "refseq", "unigene"),
    *("id_ref", "probe_id", "transcript_length", "exon_length", "effective_length", "n_exons"),
    *("gc", "gc_content", "percentage_gene_gc_content", "chromstart", "chromend", "band", "map"),
    *("basemean", "logfc", "log2foldchange", "lfcse", "stat", "pvalue", "p_value", "p_val", "padj"),
    *("fdr", "q_value", "qvalue", "adj_p_val", "aveexpr", "mean", "median", "sd", "variance"),
    *("accession", "uniprot", "protein_id", "ncbigeneid", "description", "gene_description"),
    *("database_id", "authority", "organism", "chromosome_location", "gene_status", "version"),
}  # fmt: skip
SAMPLE_COLUMNS = {
    *("sample", "samples", "sample_id", "slide", "slides", "slide_id", "wsi_file_name", "patient"),
    *("patients", "patient_id", "case", "case_id", "barcode", "modelid", "depmap_id", "profileid"),
    *("tcga_id", "sample_barcode", "aliquot", "individual", "submitter_id", "bcr_patient_barcode"),
    *("sampleid", "patientid", "caseid", "slide_name", "case_submitter_id", "barcodes", "subject"),
    *("sequencingid", "modelconditionid", "isdefaultentryformodel", "isdefaultentryformc"),
}
# What is known of patients and samples, but is not expression.
CLINICAL = {
    *("age", "age_at_diagnosis", "sex", "gender", "race", "ethnicity", "bmi", "height", "weight"),
    *("os", "os_time", "os_event", "os_status", "os_months", "dss", "dss_time", "dfi", "dfi_time"),
    *("pfi", "pfi_time", "pfs", "pfs_time", "dfs", "dfs_time", "rfs", "rfs_time", "efs", "event"),
    *("time", "status", "vital_status", "days_to_death", "days_to_last_follow_up", "survival"),
    *("stage", "grade", "t_stage", "n_stage", "m_stage", "tumor_stage", "tumor_size", "subtype"),
    *("purity", "tumor_purity", "ploidy", "tmb", "msi", "batch", "plate", "center", "site", "rin"),
    *("cluster", "class", "label", "response", "treatment", "group", "project", "project_id"),
    *("er_status", "pr_status", "her2_status", "years_to_birth", "overall_survival", "pam50"),
    *("sample_type", "sample_type_id", "tissue_type", "tumor_type", "cancer_type", "tissue"),
    *("library_size", "n_genes", "n_counts", "total_counts", "size_factor", "size_factors"),
}
PATIENT_COLUMNS = (
    "patient_id",
    "patient",
    "case_id",
    "case",
    "bcr_patient_barcode",
    "submitter_id",
)


def column_key(name):
    """Return the name of a column in lower case and with underscores."""
    return re.sub(r"[\s.\-]+", "_", str(name).strip().lower()).strip("_").replace("(s)", "s")


# Names of columns that may be those of samples or of genes, such as GC.
_DOUBTFUL = {"gc", "sd", "map", "tag", "band", "id", "name", "type"}
_NO_NAMES = {"", "?", "na", "nan", "none", "null", "unnamed:_0"}
_ANNOTATION = (GENE_COLUMNS - _DOUBTFUL - SAMPLE_COLUMNS) | (_NO_NAMES - {""})
_NOT_GENES = SAMPLE_COLUMNS | CLINICAL | set(ENTREZ_COLUMNS) | _NO_NAMES
_MARKS = str.maketrans(" .-", "___")
# A column of other numbers lies so many times farther from the median of a gene than most samples.
# In cohorts of tumours this is at most 1, also of counts.
_FAR = 10
_FEWEST_GENES = 20
_FEWEST_SAMPLES = 5


def _is_annotation(name):
    return column_key(name) in _ANNOTATION


def check_samples(X, genes, samples):
    """
    Raise if columns of expression, genes x samples, annotate genes; warn of other odd columns.

    A column of Entrez identifiers or lengths makes all genes correlate.
    """
    some = () if genes is None else genes[:: max(1, len(genes) // 200)]
    if sum(split_barcode(name)[1] is not None for name in some) > 0.5 * len(some) > 0:
        raise ValueError(
            f"X: its rows are samples, such as {name_some(genes[:2])}, but genes are expected in "
            "rows and samples in columns. Pass expression.T."
        )
    names = np.arange(X.shape[1]) if samples is None else np.asarray(samples, dtype=object)
    known = [name for name in names if isinstance(name, str) and _is_annotation(name)]
    if known and len(known) < len(names):
        raise ValueError(
            f"X: {len(known)} of {len(names)} columns annotate genes: {name_some(known)}. Such "
            f"numbers make all genes correlate. Drop them: X.drop(columns={known!r})."
        )
    if callers_warn():
        return
    if genes is not None:
        _warn_of_names(genes, "rows of X")
    _warn_of_far(X, names, "columns of X")


def _warn_of_far(X, names, whose):
    """Warn of samples, of genes x samples, that hardly are expression in the unit of the others."""
    if len(X) < _FEWEST_GENES or len(names) < _FEWEST_SAMPLES:
        return
    constant = np.ptp(X, axis=0) == 0
    far = _find_far(X) & ~constant
    for odd, what in (
        (constant & ~constant.all(), "have the same value for all genes"),
        (far, "hold values far from those of the other samples in most genes, as identifiers do"),
    ):
        if odd.any():
            warn_user(
                f"{odd.sum()} of {len(names)} {whose} {what}: {name_some(names[odd])}. They make "
                "genes correlate. Drop them, unless they are samples in the same unit."
            )


def _find_far(X):
    """Return which columns are far from the median of the rows, in most rows."""
    rows = X[:: max(1, len(X) // 500)].astype(np.float64)
    distance = np.abs(rows - np.median(rows, axis=1, keepdims=True))
    usual = np.quantile(distance, 0.75, axis=1, keepdims=True)
    return np.mean(distance > _FAR * usual, axis=0) > 0.5


def _warn_of_names(genes, what):
    """Warn of genes that are named like annotation, or not at all, among others."""
    texts = [str(name).strip() for name in genes]
    # Not column_key, which is slow for tens of thousands of genes in each fit.
    odd = np.array([name.lower().translate(_MARKS) in _NOT_GENES for name in texts], dtype=bool)
    numbers = np.array([name.isdecimal() for name in texts], dtype=bool)
    if numbers.mean() < 0.1:
        odd |= numbers
    if odd.any() and odd.mean() < 0.5:
        warn_user(
            f"{odd.sum()} of {len(texts)} {what} are not named like genes: "
            f"{name_some(np.array(texts, dtype=object)[odd])}. They are taken for genes. Drop "
            "them, or name them."
        )


def is_unlogged(values):
    """Return whether expression looks as if it was not logged: large, skewed, not centred."""
    some = values[:: max(1, len(values) // 200)]
    highest = some.max()
    if highest < 100 or some.min() < -0.05 * highest:
        return False
    return bool(highest > (3 if highest >= 1000 else 20) * np.median(some[some > 0]))


def _find_unlogged(y):
    """Return which genes are on a larger scale than almost all others, which are logged."""
    large = y.max(axis=0) > 100
    if y.shape[1] < _FEWEST_GENES or large.mean() > 0.05 or is_unlogged(y[:, ~large]):
        large[:] = False
    return large


def warn_of_doubts(y, genes, samples=None, *, look_at_scale=True):
    """Warn of expression that is not logged, and of what are hardly genes or samples."""
    if callers_warn():
        return
    rows = np.arange(len(y)) if samples is None else np.asarray(samples, dtype=object)
    _warn_of_far(y.T, rows, "rows of y")
    if genes is not None:
        _warn_of_names(genes, "columns of y")
    names = np.arange(y.shape[1]) if genes is None else genes
    counts = np.flatnonzero((np.diff(y[:_FEWEST_SAMPLES], axis=0) == 1).all(axis=0))
    counts = counts[(np.diff(y[:, counts], axis=0) == 1).all(axis=0)]
    if len(counts) and min(y.shape) >= _FEWEST_SAMPLES:
        warn_user(
            f"y: {len(counts)} of {len(names)} columns number the samples: "
            f"{name_some(names[counts])}. They are taken for genes. Drop them."
        )
    if not look_at_scale or not is_unlogged(y):
        return
    few = _find_unlogged(y)
    if few.any():
        warn_user(
            f"y: {few.sum()} of {len(names)} columns are on a larger scale than the others, as "
            f"identifiers, lengths or days are: {name_some(names[few])}. They are taken for genes. "
            "Drop them, or compute the logarithm of these genes, too."
        )
        return
    # Without numbers, Python shows equal warnings of all folds once.
    warn_user(
        "y looks like counts, TPM or FPKM that are not logged: its largest values are "
        "hundreds or thousands, far above the median. A few samples and genes then decide the "
        "fit and the correlations. Pass np.log2(y + 1), or read the table with "
        "read_expression(path, transform='log2p1')."
    )
