"""Lipsum-FT, fig. 1: OOD over ID accuracy of fine-tuned models of several methods over learning rates and steps.

From tables/accuracy.csv of one or several runs, and the settings: tables/finetunings.csv of a sweep, or a CSV file with
pair, method, and a column for each number that was varied. Only the fine-tuned ends are drawn.

python figures/paper_lipsum_tradeoff.py runs/sweep --order learning_rate steps --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_lipsum_tradeoff", __doc__)

if __name__ == "__main__":
    main()
