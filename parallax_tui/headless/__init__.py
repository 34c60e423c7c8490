"""What the command line does without a screen: one question, a status report, node processes of our own."""
