# SPDX-License-Identifier: Apache-2.0
"""Prompts of our own, in the four tasks of the shipped traces: no file has to be carried to the machine."""

MEASURED = {
    "code-1": "Write a Python function that merges overlapping intervals, with a docstring and two examples.",
    "code-2": "Write a SQL query that lists the ten customers with the highest total of paid orders in 2023.",
    "math-1": "A train leaves at 9:40 and arrives at 13:05, with a stop of 20 minutes. How long did it move? Reason "
    "step by step.",
    "math-2": "Find all whole numbers n with n * n - 7 * n + 10 = 0 and explain each step.",
    "chat-1": "I have two days in Lisbon and like music and food. What should I do?",
    "chat-2": "Explain to a friend who has never programmed what a database index is.",
    "summary-1": "Summarize in three sentences: Honeybees tell their nest mates where food is by dancing. The angle of "
    "the dance against the vertical gives the direction against the sun, its length gives the distance, and its vigour "
    "how good the food is. Bees that follow the dance then fly out and search near the spot. The dance was decoded by "
    "Karl von Frisch, who received a Nobel prize for it in 1973.",
    "summary-2": "Summarize in two sentences: The committee met on Tuesday and discussed the new timetable. Teachers "
    "wanted longer breaks, parents wanted an earlier end, and the bus company asked for a start that does not fall "
    "into the rush hour. A proposal that starts at 8:15 and keeps two long breaks found a majority; it will be tried "
    "for one year from September.",
}
"""Name -> prompt; what is reported rests on these."""

TUNING = {
    "code-0": "Write a function in C that counts the words of a string.",
    "math-0": "What is 17 percent of 2,450? Show the steps.",
    "chat-0": "Give me five ideas for a rainy Sunday with children.",
    "summary-0": "Summarize in one sentence: The museum reopens in May after three years of work. Its roof is new, the "
    "entrance has moved to the park, and tickets are free on Mondays.",
}
"""Name -> prompt; the best fixed gamma is chosen on these."""
