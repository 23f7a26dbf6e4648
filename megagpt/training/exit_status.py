"""What the exit status of `megagpt train` says: may a launcher or a job script start the command again?

docs/faults.md has the table. Imports nothing: job scripts and launchers read it too.
"""

COMPLETE = 0  # trained to the end, or stopped by SIGTERM or SIGUSR1 with a checkpoint saved
USER_ERROR = 2  # configuration, tokenizer, data or checkpoint are wrong: a restart fails in the same way
STOPPED = 3  # training had to stop (not finite, copies of weights differ, the last save failed): a person has to look
RESTART = 75  # EX_TEMPFAIL of sysexits.h: a rank hung or was lost; the same command goes on from the latest checkpoint
INTERRUPTED = 130  # 128 + SIGINT: Ctrl-C
