"""The kinds of sample. One module each; `pipeline.kinds.registry` has an entry for each.

part         what is known of one part of the users: the input of kinds that have a user
retrieval    positives, for retrieval
scenario     positives with negatives of their scenario
pair         two views of one user, or of one item, in two scenarios
views        what is seen of a user, and of an item, in one scenario: columns of both
behaviour    impressions with the user's behaviours, a label for each task
corpus       the items of each scenario as of a day
dropped      counts of samples that could not be made
registry     all of them, with their schemas
"""
