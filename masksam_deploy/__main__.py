"""`python -m masksam_deploy` is `masksam-deploy`."""

from masksam_deploy.cli import main

if __name__ == "__main__":
    main()
