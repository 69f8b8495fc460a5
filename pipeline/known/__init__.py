"""What was known before: of a user to the event, of an item to the day.

history   the last positives of a user, strictly before an event
tables    users' and items' tables whose rows hold for a time
current   those tables as their files are now, for the live join
facts     what became known in a day, kept so that later days need not read its events again
items     items as of a day: counts, newest columns, and draws in proportion to exposure
"""
