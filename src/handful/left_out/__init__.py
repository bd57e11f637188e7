"""What a head would say of a support image that it had not seen, exactly and without fitting again.

Leaving out one shot of every class at a time (`handful.selection.shot_numbers` gives the folds) keeps the
classes balanced. Leaving out single images takes one from the true class alone, which at few shots speaks
against every support set.
"""
