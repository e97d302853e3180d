"""A new head: fitted on the frozen backbone, and scored out of fold."""
