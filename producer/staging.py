"""The SQL of the manifest: how staged files and metadata rows find each other."""

# ruff: noqa: S608 - every statement is put together from constants of this module

#: Beats every line number: a row that names the whole path wins over one that names the file only.
_BY_NAME = 1 << 50

# Nothing here outlives the process, so nothing needs a journal. The cache is what memory this takes at most: 64 MiB.
PREPARE = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;"

SCHEMA = """
CREATE TABLE file (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, rejected TEXT,
    path_key TEXT, name_key TEXT, suffix TEXT,
    frames INTEGER NOT NULL, study_uid TEXT, series_uid TEXT, instance_uid TEXT,
    age REAL, sex TEXT, localization TEXT, patient_ref TEXT
) WITHOUT ROWID;
CREATE TABLE record (
    line INTEGER PRIMARY KEY, image TEXT, key TEXT, by_path INTEGER, suffix TEXT, age REAL, sex TEXT,
    localization TEXT, lesion_id TEXT, patient_ref TEXT, label TEXT, rejected TEXT
);
CREATE TABLE unlisted (study_uid TEXT, reason TEXT NOT NULL);
CREATE TABLE problem (line INTEGER, reason TEXT NOT NULL, image TEXT);
"""

INDEXES = """
CREATE INDEX file_by_path ON file (path_key);
CREATE INDEX file_by_name ON file (name_key);
CREATE INDEX record_by_key ON record (key, by_path, suffix, line);
"""

# Every pair of a row and a file it may mean; then for each file the one row that counts: the first.
MATCH = f"""
CREATE TABLE pair AS
    SELECT r.line AS line, f.path AS path, f.size AS size, r.line AS rank FROM record r JOIN file f
        ON f.path_key = r.key AND (r.suffix IS NULL OR r.suffix = f.suffix) WHERE r.by_path = 1 AND r.rejected IS NULL
    UNION ALL
    SELECT r.line, f.path, f.size, r.line + {_BY_NAME} FROM record r JOIN file f
        ON f.name_key = r.key AND (r.suffix IS NULL OR r.suffix = f.suffix) WHERE r.by_path = 0 AND r.rejected IS NULL;
CREATE INDEX pair_by_line ON pair (line);
CREATE INDEX pair_by_path ON pair (path);
CREATE TABLE chosen AS SELECT path, min(rank) % {_BY_NAME} AS line, size FROM pair GROUP BY path;
CREATE INDEX chosen_by_path ON chosen (path);
CREATE INDEX chosen_by_line ON chosen (line);
"""

_VALUES = ("age", "sex", "localization", "lesion_id", "patient_ref", "label")
_SAME = " AND ".join(f"loser.{name} IS winner.{name}" for name in _VALUES)

# A row whose files all follow an earlier row says the same again, or contradicts it.
LOSERS = f"""
INSERT INTO problem
    SELECT loser.line, CASE WHEN {_SAME} THEN 'duplicate_row' ELSE 'conflicting_row' END, loser.image
    FROM record loser
    JOIN (SELECT line, min(path) AS path FROM pair GROUP BY line) p ON p.line = loser.line
    JOIN chosen c ON c.path = p.path
    JOIN record winner ON winner.line = c.line
    WHERE loser.line NOT IN (SELECT line FROM chosen);
CREATE TABLE missing AS
    SELECT min(line) AS line, key, by_path, suffix FROM record
    WHERE rejected IS NULL AND line NOT IN (SELECT line FROM pair) GROUP BY key, by_path, suffix;
INSERT INTO problem
    SELECT loser.line, CASE WHEN {_SAME} THEN 'duplicate_row' ELSE 'conflicting_row' END, loser.image
    FROM missing m JOIN record winner ON winner.line = m.line
    JOIN record loser ON loser.key = m.key AND loser.by_path = m.by_path AND loser.suffix IS m.suffix
    WHERE loser.line > m.line;
INSERT INTO problem SELECT line, 'missing_image', image FROM record WHERE line IN (SELECT line FROM missing);
"""

# One name, several files. Of one size and content they are copies of one image, as in Kaggle's HAM10000, and the row is
# about each. Otherwise nobody knows whose age and site they are, and a wrong one is worse than none.
ALIKE = """
CREATE TABLE alike AS
    SELECT path, size, NULL AS sample FROM chosen WHERE line IN
        (SELECT line FROM chosen GROUP BY line HAVING count(*) > 1 AND min(size) = max(size));
CREATE UNIQUE INDEX alike_by_path ON alike (path);
"""
LIST_ALIKE = "SELECT path, size FROM alike ORDER BY path"
SET_SAMPLE = "UPDATE alike SET sample = ? WHERE path = ?"
SHARED = """
CREATE TABLE shared AS
    SELECT c.line AS line, count(a.sample) < count(*) OR count(DISTINCT a.sample) > 1 AS ambiguous
    FROM chosen c LEFT JOIN alike a ON a.path = c.path GROUP BY c.line HAVING count(*) > 1;
INSERT INTO problem
    SELECT s.line, CASE WHEN s.ambiguous THEN 'ambiguous_name' ELSE 'several_copies' END, r.image
    FROM shared s JOIN record r ON r.line = s.line;
DELETE FROM chosen WHERE line IN (SELECT line FROM shared WHERE ambiguous);
"""

_ROW = "r.image, r.by_path, r.age, r.sex, r.localization, r.lesion_id, r.patient_ref, r.label"
FILES = """
SELECT f.path, f.size, f.mtime_ns, f.rejected, r.image, r.by_path, coalesce(r.age, f.age), coalesce(r.sex, f.sex),
    coalesce(r.localization, f.localization), r.lesion_id, coalesce(r.patient_ref, f.patient_ref), r.label,
    f.frames, f.study_uid, f.series_uid, f.instance_uid FROM file f
LEFT JOIN chosen c ON c.path = f.path LEFT JOIN record r ON r.line = c.line ORDER BY f.path
"""
# A table and a header that both say something of one image.
LIST_HEADERS = """
SELECT f.path, r.age, f.age, r.sex, f.sex, r.localization, f.localization, r.patient_ref, f.patient_ref FROM file f
JOIN chosen c ON c.path = f.path JOIN record r ON r.line = c.line ORDER BY f.path
"""

# What a PACS could not list.
LIST_UNLISTED = "SELECT study_uid, reason FROM unlisted ORDER BY study_uid, reason"
INSERT_UNLISTED = "INSERT INTO unlisted VALUES (?, ?)"

_LONE = "FROM record r WHERE r.rejected IS NOT NULL OR r.line IN (SELECT line FROM missing)"
LONE_ROWS = f"""
SELECT coalesce(r.rejected, 'missing_image'), r.key, r.suffix, {_ROW} {_LONE}
ORDER BY r.image, r.age, r.sex, r.localization, r.lesion_id, r.patient_ref, r.label
"""

#: Of a file, or of each frame of it, there is one item, whatever rows mean it.
COUNT_ITEMS = f"""
SELECT (SELECT coalesce(sum(frames), 0) FROM file) + (SELECT count(*) {_LONE}) + (SELECT count(*) FROM unlisted)
"""

#: Files that no row is about.
_FILES_WITHOUT_ROW = "FROM file f WHERE NOT EXISTS (SELECT 1 FROM pair p WHERE p.path = f.path)"

COUNT_FILES_WITHOUT_ROW = f"SELECT count(*) {_FILES_WITHOUT_ROW}"
LIST_FILES_WITHOUT_ROW = f"SELECT f.path {_FILES_WITHOUT_ROW} ORDER BY f.path"
PROBLEM_COUNTS = "SELECT reason, count(*) FROM problem GROUP BY reason ORDER BY reason"
LIST_PROBLEMS = "SELECT line, reason, image FROM problem ORDER BY line IS NULL, line, reason"
INSERT_FILE = f"INSERT INTO file VALUES ({', '.join('?' * 15)})"
INSERT_RECORD = f"INSERT INTO record VALUES ({', '.join('?' * 12)})"
INSERT_PROBLEM = "INSERT INTO problem VALUES (?, ?, ?)"
