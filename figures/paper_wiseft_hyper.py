"""WiSE-FT, fig. 3: the paths of models fine-tuned with other hyperparameters, coloured by each of them.

From tables/accuracy.csv of one or several runs, and the hyperparameters: tables/finetunings.csv of a sweep, or a CSV
file with the column pair and one column per hyperparameter. Without either each pair has its own colour.

python figures/paper_wiseft_hyper.py runs/sweep --columns learning_rate epochs --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_wiseft_hyper", __doc__)

if __name__ == "__main__":
    main()
