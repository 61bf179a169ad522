"""What follows from the subjects' declarations: the commands ``tx`` and ``show``, and pages of the documentation."""
