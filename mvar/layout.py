"""Names of the files and folders of a results directory, by where they lie; `results/README.md` says what they hold.

A name is written here and nowhere else in the library. Names that are put together, of a run or a job or a figure, are
made where these are.
"""

# RESULTS/
RUNS = "runs"
STAGES = "stages"
SWEEPS = "sweeps"
SUBMISSIONS = "submissions"
ATTENTION = "attention"
KNOCKOUT = "knockout"
REPORT = "report"
ANALYSIS = "analysis"
INDEX = ".index.json"

# In several folders
LOCK = ".lock"  # of runs/<id>, stages/<id>, submissions/<id>, and of sweeps/ and submissions/ themselves
STATUS = "status.json"
CONFIG = "config.json"
DIGESTS = "digests.json"
ERROR = "error.txt"
CHECKPOINTS = "checkpoints"
CHECKPOINT_FILES = "step_*.pt"  # a pattern: of one process
CHECKPOINTS_OF_STEPS = "step_*"  # these, and the folders of several processes
CHECKPOINT_SHARDS = "*.distcp"  # in such a folder, a pattern
CHECKPOINT_REST = "rest.pt"  # and what is no tensor of the module or the optimizer
METRICS = "metrics.jsonl"
METRICS_MISSING = "metrics_missing.json"  # where fewer rows of it were found than were written
TENSORBOARD = "tensorboard"

# runs/<id>/
ENV = "env.json"
PLUGINS = "plugins.json"
START = "start.json"
EXECUTION = "execution.json"
TOKENIZER_USED = "tokenizer.json"  # on whose tokens the run is trained
MODEL = "model.safetensors"
MEANS = "model-ema-{}.safetensors"  # by half-life in images
EVAL = "eval.json"
SAMPLES = "samples"

# runs/<id>/samples/<evaluation_id>/
SAMPLES_NPZ = "samples.npz"
GRID = "grid.png"
TIMING = "timing.json"
SAMPLES_PARTIAL = "partial.bin"
SAMPLES_PROGRESS = "partial.json"

# runs/<id>/ and attention/<id>/
ATTENTION_JSON = "attention.json"
ATTENTION_ROWS = "attention_images.npy"
ATTENTION_PARTIAL = "attention_images.partial"
ATTENTION_PROGRESS = "attention_images.json"
ATTENTION_LOCK = ".attention.lock"

# runs/<id>/ and knockout/<id>/
KNOCKOUT_JSON = "knockout.json"
KNOCKOUT_LOCK = ".knockout.lock"

# runs/<id>/ and probes/<id>/; a document a probe lies in a folder of the first name
PROBES = "probes"
PROBES_LOCK = ".probes.lock"

# stages/tokenizer-<id>/
TOKENIZER = "tokenizer.safetensors"
QUALITY = "quality.json"
SOURCE = "source.json"
SOURCE_STAMP = ".source.sha256"

# stages/tokens-<id>/<split>/, and stages/vectors-<id>/
META = "meta.json"
PROGRESS = "progress.json"
TOKENS = "tokens.bin"
TOKENS_PARTIAL = "tokens.bin.partial"
LABELS = "labels.bin"
VECTORS = "vectors.bin"
VECTORS_PARTIAL = "vectors.bin.partial"

# stages/extractor-<id>/
EXTRACTOR = "extractor.json"
CLASSIFIER = "classifier.safetensors"
FLOORS = "floors.json"
CLASS_OUTPUTS = "class_outputs.json"

# checks/<source>-<id>
CHECKS = "checks"

# stages/data-<id>/
SUMMARY = "summary.json"

# sweeps/
FORGOTTEN = "forgotten"

# submissions/<id>/
SUBMISSION = "submission.json"
SUBMISSION_ASIDE = "submission.json.damaged"  # no longer looked at
LOGS = "logs"
MEETINGS = "meetings"
LIMITS = "limits"

# submissions/code/<id>/
CODE = "code"
SNAPSHOT = "snapshot.json"
DIFF = "diff.patch"

# report/, and analysis/<name>/
REPORT_MD = "report.md"
REPORT_HTML = "report.html"
PAGE_MD = "page.md"
PAGE_HTML = "page.html"
TABLES = "tables"
FIGURES = "figures"
RUNS_CSV = "runs.csv"
TABLES_TEX = "tables.tex"
REPORT_CACHE = "cache.json"
REPORT_FILES = ".files.json"
