"""What logs of one machine share: group commit, followers, consumer groups; and the log in memory."""
