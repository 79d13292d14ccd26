"""Views for BI tools: `db.views` has them, and every migration makes them anew."""

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

#: `db.views.digest_views()` as of this revision: who changes a view adds a revision, or no ledger would take it.
views_digest = "7f24170f0d61655d82e0d5e293b2ba5241525c81008bcec685121e486ab4026c"


def upgrade() -> None:
    # What surrounds the migrations makes the views.
    pass


def downgrade() -> None:
    raise NotImplementedError("A ledger only grows: restore a backup to go back.")
