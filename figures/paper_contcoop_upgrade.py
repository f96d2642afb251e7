"""ContCoOp's comparison: accuracy on the old and on the upgraded model, zero-shot and with what was tuned.

From tables/upgrade.csv of 'sharpscope protocol upgrade', or, with --from accuracy, from tables/accuracy.csv of a run
with --upgraded. The gain is the difference to the upgraded zero-shot model.

python figures/paper_contcoop_upgrade.py runs/upgrade --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_contcoop_upgrade", __doc__)

if __name__ == "__main__":
    main()
