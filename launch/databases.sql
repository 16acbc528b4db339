-- One database for each process, and an owner for each who cannot open the others'.

\getenv password PAYMENTS_DATABASE_PASSWORD
CREATE ROLE payments LOGIN PASSWORD :'password';
CREATE DATABASE payments OWNER payments;
REVOKE CONNECT ON DATABASE payments FROM PUBLIC;

\getenv password EMAIL_DATABASE_PASSWORD
CREATE ROLE email LOGIN PASSWORD :'password';
CREATE DATABASE email OWNER email;
REVOKE CONNECT ON DATABASE email FROM PUBLIC;

\getenv password SMS_DATABASE_PASSWORD
CREATE ROLE sms LOGIN PASSWORD :'password';
CREATE DATABASE sms OWNER sms;
REVOKE CONNECT ON DATABASE sms FROM PUBLIC;

\getenv password GATEWAY_DATABASE_PASSWORD
CREATE ROLE gateway LOGIN PASSWORD :'password';
CREATE DATABASE gateway OWNER gateway;
REVOKE CONNECT ON DATABASE gateway FROM PUBLIC;
