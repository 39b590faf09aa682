# shellcheck shell=bash
# Says for each thing that Stoker can use whether it is there, and what to do if not.
